// SPDX-License-Identifier: MIT
// Storage types, their accumulators, and the arithmetic of a streamed softmax. Host and device.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "host_device.h"

namespace ocnet {

// 8- and 16-bit storage: only converted, never computed with.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
// e4m3: 4 bits of exponent and 3 of mantissa, to 448 and down to 2^-9. No infinities.
struct Float8 {
  uint8_t bits;
};

// Scores and sums are fp32, and fp64 for fp64 storage.
template <typename scalar_t>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename scalar_t>
using accumulator_t = typename AccumulatorOf<scalar_t>::type;

namespace detail {

template <typename To, typename From>
OCNET_HOST_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs types of one size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// The hardware conversions of fp16, in integer arithmetic for the host.
inline float float16_bits_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  const uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24 is exact in fp32
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t wide = exponent == 0x1fu ? 0xffu : exponent + (127 - 15);
  return bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
}

inline uint16_t float_to_float16_bits(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7fffu);   // NaN
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to inf
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the result in the low mantissa bits, rounded to nearest even.
    const uint32_t shifted = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f);
    return static_cast<uint16_t>(sign | (shifted - 0x3f000000u));
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  const uint32_t rebiased = magnitude - (static_cast<uint32_t>(127 - 15) << 23);
  return static_cast<uint16_t>(sign | ((rebiased + 0xfffu + odd) >> 13));
}

OCNET_HOST_DEVICE float float8_bits_to_float(uint8_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80u) << 24;
  const uint32_t magnitude = bits & 0x7fu;
  if (magnitude == 0x7fu) return bit_cast<float>(sign | 0x7fc00000u);  // NaN
  if (magnitude < 8) {  // zero or subnormal: mantissa * 2^-9 is exact in fp32
    const float small = static_cast<float>(magnitude) * 0x1p-9f;
    return sign != 0 ? -small : small;
  }
  return bit_cast<float>(sign | ((magnitude << 20) + (static_cast<uint32_t>(127 - 7) << 23)));
}

OCNET_HOST_DEVICE uint8_t float_to_float8_bits(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 24) & 0x80u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fu;                                // the one NaN
  if (magnitude >= 0x43e00000u) return static_cast<uint8_t>(sign | 0x7eu);  // 448 and above
  if (magnitude < 0x3c800000u) {
    // Subnormal: adding 2^14 leaves the result in the low mantissa bits, rounded to nearest even.
    const uint32_t shifted = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0x1p14f);
    return static_cast<uint8_t>(sign | (shifted - 0x46800000u));
  }
  const uint32_t odd = (magnitude >> 20) & 1u;
  const uint32_t rebiased = magnitude - (static_cast<uint32_t>(127 - 7) << 23);
  return static_cast<uint8_t>(sign | ((rebiased + 0x7ffffu + odd) >> 20));
}

}  // namespace detail

OCNET_HOST_DEVICE float to_accumulator(float value) { return value; }
OCNET_HOST_DEVICE double to_accumulator(double value) { return value; }
OCNET_HOST_DEVICE float to_accumulator(BFloat16 value) {
  return detail::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}
OCNET_HOST_DEVICE float to_accumulator(Float16 value) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#else
  return detail::float16_bits_to_float(value.bits);
#endif
}
OCNET_HOST_DEVICE float to_accumulator(Float8 value) {
  return detail::float8_bits_to_float(value.bits);
}

// Rounds to nearest even; NaN stays NaN.
template <typename scalar_t>
OCNET_HOST_DEVICE scalar_t from_accumulator(accumulator_t<scalar_t> value) {
  return value;
}
template <>
OCNET_HOST_DEVICE BFloat16 from_accumulator<BFloat16>(float value) {
#if defined(__CUDA_ARCH__)
  BFloat16 narrow;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
  return narrow;
#else
  const uint32_t bits = detail::bit_cast<uint32_t>(value);
  // Rounding a NaN could carry its mantissa into infinity.
  if (value != value) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
#endif
}
template <>
OCNET_HOST_DEVICE Float16 from_accumulator<Float16>(float value) {
#if defined(__CUDA_ARCH__)
  Float16 narrow;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
  return narrow;
#else
  return {detail::float_to_float16_bits(value)};
#endif
}
// What is too large, infinities too, becomes 448: as ptx::pack_four does it.
template <>
OCNET_HOST_DEVICE Float8 from_accumulator<Float8>(float value) {
  return {detail::float_to_float8_bits(value)};
}

// 0, but NaN for NaN and for infinities.
template <typename acc_t>
OCNET_HOST_DEVICE acc_t zero_if_finite(acc_t value) {
  return value - value;
}

template <typename acc_t>
OCNET_HOST_DEVICE constexpr acc_t negative_infinity() {
  return -std::numeric_limits<acc_t>::infinity();
}

// The running maximum ignores NaN: a NaN score reaches the row through its probability instead.
template <typename acc_t>
OCNET_HOST_DEVICE acc_t maximum(acc_t running, acc_t score) {
#if defined(__CUDA_ARCH__)
  return std::fmax(running, score);  // one instruction where a comparison makes two
#else
  return score > running ? score : running;
#endif
}

template <typename acc_t>
OCNET_HOST_DEVICE acc_t masked_maximum(acc_t running, acc_t score, bool valid) {
  return valid ? maximum(running, score) : running;
}

// What is subtracted from the scores of a row. While every score is -inf, subtracting their maximum
// would give NaN and the row could not recover in a later tile; with 0 its weights are just 0.
template <typename acc_t>
OCNET_HOST_DEVICE acc_t softmax_reference(acc_t row_maximum) {
  return row_maximum == negative_infinity<acc_t>() ? acc_t(0) : row_maximum;
}

// exp(score - reference), and exactly 0 for padding whatever its score.
template <typename acc_t>
OCNET_HOST_DEVICE acc_t masked_exponential(acc_t score, acc_t reference, bool valid) {
  return valid ? std::exp(score - reference) : acc_t(0);
}

// One row of a softmax whose scores arrive in tiles. `total` is relative to exp(maximum).
template <typename acc_t>
struct OnlineSoftmax {
  acc_t maximum = negative_infinity<acc_t>();
  acc_t total = acc_t(0);

  // Takes in the maximum of one more tile; returns the factor for what was summed before.
  OCNET_HOST_DEVICE acc_t raise(acc_t tile_maximum) {
    const acc_t raised = ocnet::maximum(maximum, tile_maximum);
    const acc_t rescale = std::exp(maximum - softmax_reference(raised));
    maximum = raised;
    total *= rescale;
    return rescale;
  }

  OCNET_HOST_DEVICE acc_t reference() const { return softmax_reference(maximum); }
};

// Natural logarithm of the sum of exponentials: -inf when every score is, NaN when the softmax is.
template <typename acc_t>
OCNET_HOST_DEVICE acc_t log_sum_exp(acc_t maximum, acc_t total) {
  return maximum + std::log(total);
}

}  // namespace ocnet
