// SPDX-License-Identifier: MIT
#include "instruction_sets.h"

#include <algorithm>
#include <atomic>

#if OCNET_X86
#include <cpuid.h>
#endif

namespace ocnet::cpu {
namespace {

InstructionSet detect() {
#if OCNET_X86
  // Older compilers have no name for the conversions of 16-bit numbers.
  unsigned int a, b, c, d;
  const bool converts = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
  if (!converts || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    return InstructionSet::kPortable;
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return InstructionSet::kAvx512;
  }
  return InstructionSet::kAvx2;
#else
  return InstructionSet::kPortable;
#endif
}

std::atomic<InstructionSet> widest_wanted{InstructionSet::kAvx512};

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet widest = detect();
  return std::min(widest, widest_wanted.load());
}

}  // namespace ocnet::cpu

#if OCNET_VECTORS
// For the tests, which find it by its name in the loaded library: kernels use no wider set than the
// one of this number. Returns the number of the one they use now.
extern "C" __attribute__((visibility("default"))) int ocnet_cpu_limit_instructions(int widest) {
  using ocnet::cpu::InstructionSet;
  ocnet::cpu::widest_wanted = static_cast<InstructionSet>(widest);
  return static_cast<int>(ocnet::cpu::instruction_set());
}
#endif
