// SPDX-License-Identifier: MIT
#include "kernels.h"

#include <atomic>
#include <cstddef>
#include <cstring>
#include <limits>
#include <utility>

#include "numbers.h"

#if defined(__GNUC__) || defined(__clang__)
#define OCNET_VECTORS 1
#define OCNET_PREFETCH(address) __builtin_prefetch(address, 0, 2)
#define OCNET_INLINE inline __attribute__((always_inline))
#else
#define OCNET_VECTORS 0
#define OCNET_PREFETCH(address)
#define OCNET_INLINE inline
#endif

#if defined(__clang__)
#define OCNET_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define OCNET_UNROLL _Pragma("GCC unroll 16")
// The notes are about the calling convention of wide vectors; no vector is passed in a real call.
#pragma GCC diagnostic ignored "-Wpsabi"
#else
#define OCNET_UNROLL
#endif

#if OCNET_VECTORS && defined(__x86_64__)
#define OCNET_X86 1
#else
#define OCNET_X86 0
#endif

// Whether the compiler knows the products of bfloat16 pairs.
#if OCNET_X86 && (defined(__clang__) || __GNUC__ >= 10)
#define OCNET_AVX512_BF16 1
#include <immintrin.h>
#else
#define OCNET_AVX512_BF16 0
#endif

namespace ocnet::cpu {
namespace {

// Constants of exp_nonpositive.
template <typename T>
struct Float;

template <>
struct Float<float> {
  using Bits = uint32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr Bits kOne = 0x3f800000u;
  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits.
  static constexpr float kRound = 12582912.0f;
  static constexpr float kLog2e = 1.44269504088896340736f;
  // ln(2) in two parts, the first with so few bits that its product with an integer is exact.
  static constexpr float kLn2Hi = 0.693359375f;
  static constexpr float kLn2Lo = -2.12194440054690583e-4f;
  static constexpr float kSmallest = -87.0f;   // below it the result would be subnormal
  static constexpr float kZero = -103.97208f;  // below it the nearest float is 0
  // Taylor on |f| <= ln(2) / 2: the remainder is a tenth of an ulp.
  static constexpr int kDegree = 7;
};

template <>
struct Float<double> {
  using Bits = uint64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr Bits kOne = 0x3ff0000000000000u;
  static constexpr double kRound = 6755399441055744.0;
  static constexpr double kLog2e = 1.44269504088896340736;
  static constexpr double kLn2Hi = 0.693147180369123816490;
  static constexpr double kLn2Lo = 1.90821492927058770002e-10;
  static constexpr double kSmallest = -708.0;
  static constexpr double kZero = -745.13321910194122;
  static constexpr int kDegree = 13;
};

template <typename T>
constexpr T inverse_factorial(int n) {
  T product = 1;
  for (int k = 2; k <= n; ++k) {
    product *= k;
  }
  return T(1) / product;
}

// 16-byte vectors are in the base of x86-64 (SSE2) and of aarch64 (NEON); without vectors a
// "vector" is one number.
namespace portable {
constexpr int kBytes = OCNET_VECTORS ? 16 : 1;
constexpr int kRows = 6;
#define OCNET_PAIRS 0
#include "kernels_impl.h"
}  // namespace portable

#if OCNET_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace avx2 {
constexpr int kBytes = 32;
constexpr int kRows = 6;
#include "kernels_impl.h"
}  // namespace avx2
#undef OCNET_PAIRS
#define OCNET_PAIRS 1
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif
namespace avx512 {
constexpr int kBytes = 64;
constexpr int kRows = 12;
#include "kernels_impl.h"
}  // namespace avx512
#if OCNET_AVX512_BF16
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC target("avx512bf16")
#endif
#define OCNET_PAIR_PRODUCT(sum, a, b) \
  bit_copy<V>(_mm512_dpbf16_ps(sum, bit_copy<__m512bh>(a), bit_copy<__m512bh>(b)))
namespace avx512bf16 {
constexpr int kBytes = 64;
constexpr int kRows = 12;
#include "kernels_impl.h"
}  // namespace avx512bf16
#endif
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

bool supports_avx512() {
#if OCNET_X86
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

template <typename T>
const Kernels<T>& choose() {
#if OCNET_X86
  if (supports_avx512()) {
    return avx512::table<avx512::Single<T>>();
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return avx2::table<avx2::Single<T>>();
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
  if (pairs_in_steps && supports_avx512()) {
    return &avx512::table<avx512::Pair>();
  }
#endif
#if OCNET_AVX512_BF16
  if (__builtin_cpu_supports("avx512bf16") && supports_avx512()) {
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
  return ocnet::cpu::supports_avx512();
}
#endif
