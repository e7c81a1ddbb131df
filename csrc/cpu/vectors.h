// SPDX-License-Identifier: MIT
// The formats of float and double, as the elementary functions of the kernels use them.
#pragma once

#include <cstdint>

namespace ocnet::cpu {

// Constants of exp and log.
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
  static constexpr Bits kRootOfHalf = 0x3f3504f3u;
  // Of log(1 + f) as a series in f / (2 + f), at most 0.172 for 1 + f within a factor of sqrt(2).
  static constexpr int kLogTerms = 5;
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
  static constexpr Bits kRootOfHalf = 0x3fe6a09e667f3bcdu;
  static constexpr int kLogTerms = 11;
};

template <typename T>
constexpr T inverse_factorial(int n) {
  T product = 1;
  for (int k = 2; k <= n; ++k) {
    product *= k;
  }
  return T(1) / product;
}

}  // namespace ocnet::cpu
