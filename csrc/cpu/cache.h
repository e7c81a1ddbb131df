// SPDX-License-Identifier: MIT
// How much the caches hold.
#pragma once

#include <cstdint>

namespace ocnet::cpu {

// Bytes of the largest cache, which all cores share on most processors.
int64_t largest_cache();

}  // namespace ocnet::cpu
