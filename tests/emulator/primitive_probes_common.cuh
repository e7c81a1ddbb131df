// SPDX-License-Identifier: MIT
// Images of shared memory: the tests lay them out byte by byte and look at what became of them.
#pragma once

#include "common/device.cuh"
#include "common/ptx/address.cuh"
#include "probe.h"

namespace ocnet::probes {

constexpr int kOneWarp = device::kWarpThreads;

// By all threads of the block.
OCNET_DEVICE void copy_words(uint32_t* to, const uint32_t* from, int words, int threads) {
  for (int word = device::thread_index(); word < words; word += threads) to[word] = from[word];
}

// Bytes of a buffer as the words of an image.
inline int words_of(const ProbeCall& call, int buffer) {
  return static_cast<int>(call.elements<uint32_t>(buffer));
}

}  // namespace ocnet::probes
