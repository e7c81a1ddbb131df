// SPDX-License-Identifier: MIT
// The variants for a GPU, which library.py builds.
#include "probe_library.cuh"
// After what it checks CUDA's answers with.
#include "variants.h"

namespace ocnet::probes {

const Probe* find_probe(const char* name) { return find_in(name, variants::kVariants); }

}  // namespace ocnet::probes
