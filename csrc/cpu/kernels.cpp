// SPDX-License-Identifier: MIT
#include "kernels.h"

#include <atomic>
#include <cstddef>
#include <cstring>
#include <limits>
#include <utility>

#include "instruction_sets.h"
#include "numbers.h"
#include "vectors.h"

// Whether the compiler knows the products of bfloat16 pairs.
#if OCNET_X86 && (defined(__clang__) || __GNUC__ >= 10)
#define OCNET_AVX512_BF16 1
#else
#define OCNET_AVX512_BF16 0
#endif

namespace ocnet::cpu {
namespace {

#define OCNET_KERNELS "kernels_impl.h"
#include "each_instruction_set.h"

#if OCNET_AVX512_BF16
#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif
#define OCNET_PAIR_PRODUCT(sum, a, b) \
  bit_copy<V>(_mm512_dpbf16_ps(sum, bit_copy<__m512bh>(a), bit_copy<__m512bh>(b)))
namespace avx512bf16 {
constexpr int kBytes = 64;
#define OCNET_BYTES 64
#include OCNET_KERNELS
}  // namespace avx512bf16
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

template <typename T>
const Kernels<T>& choose() {
#if OCNET_X86
  switch (instruction_set()) {
    case InstructionSet::kAvx512:
      return avx512::table<avx512::Single<T>>();
    case InstructionSet::kAvx2:
      return avx2::table<avx2::Single<T>>();
    case InstructionSet::kPortable:
      break;
  }
#endif
  return portable::table<portable::Single<T>>();
}

std::atomic<bool> pairs_in_steps{false};

}  // namespace

template <>
const Kernels<float>& kernels<float>() {
  return choose<float>();
}

template <>
const Kernels<double>& kernels<double>() {
  return choose<double>();
}

const Kernels<float>* pair_kernels() {
#if OCNET_X86
  if (pairs_in_steps && instruction_set() == InstructionSet::kAvx512) {
    return &avx512::table<avx512::Pair>();
  }
#endif
#if OCNET_AVX512_BF16
  if (__builtin_cpu_supports("avx512bf16") && instruction_set() == InstructionSet::kAvx512) {
    return &avx512bf16::table<avx512bf16::Pair>();
  }
#endif
  return nullptr;
}

}  // namespace ocnet::cpu

#if OCNET_VECTORS
// For the tests, which find it by its name in the loaded library: bfloat16 is multiplied in pairs
// without the instruction for it, so that all around the instruction runs where it is missing.
// Returns whether that is possible here.
extern "C" __attribute__((visibility("default"))) bool ocnet_cpu_pairs_in_steps(bool wanted) {
  ocnet::cpu::pairs_in_steps = wanted;
  return ocnet::cpu::instruction_set() == ocnet::cpu::InstructionSet::kAvx512;
}
#endif
