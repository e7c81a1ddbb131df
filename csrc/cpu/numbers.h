// SPDX-License-Identifier: MIT
// Arithmetic of sizes, and what 16-bit numbers stand for.
#pragma once

#include <cstdint>
#include <cstring>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace ocnet::cpu {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

inline double widen(double value) { return value; }

inline float widen(float value) { return value; }

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float widen(c10::BFloat16 value) { return from_bits(uint32_t{value.x} << 16); }

// From the bits of a number of IEEE's 16-bit format.
inline float widen_half(uint32_t value) {
  // Shifted into place, the exponent is 112 too small; one exact product repairs it, for subnormals
  // too. No branch, so that loops over this become vector code.
  const uint32_t magnitude = value & 0x7fffu;
  const float scaled = from_bits(magnitude << 13) * from_bits((127u + 112u) << 23);
  const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return from_bits(to_bits(scaled) | special | (value & 0x8000u) << 16);
}

inline float widen(c10::Half value) { return widen_half(value.x); }

}  // namespace ocnet::cpu
