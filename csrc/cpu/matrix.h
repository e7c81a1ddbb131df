// SPDX-License-Identifier: MIT
// Token matrices as the caller has them.
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

inline float widen(c10::BFloat16 value) { return from_bits(uint32_t{value.x} << 16); }

inline float widen(c10::Half value) {
  // Shifted into place, the exponent is 112 too small; one exact product repairs it, for subnormals
  // too. No branch, so that loops over this become vector code.
  const uint32_t magnitude = uint32_t{value.x} & 0x7fffu;
  const float scaled = from_bits(magnitude << 13) * from_bits((127u + 112u) << 23);
  uint32_t bits;
  std::memcpy(&bits, &scaled, sizeof(bits));
  bits |= magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return from_bits(bits | (uint32_t{value.x} & 0x8000u) << 16);
}

// A batch of token matrices with the strides of the tensor, in elements.
template <typename Element>
struct Matrices {
  Element* data;
  int64_t tokens, channels;
  int64_t batch_stride, token_stride, channel_stride;

  Element* at(int64_t batch, int64_t token) const {
    return data + batch * batch_stride + token * token_stride;
  }
};

}  // namespace ocnet::cpu
