// SPDX-License-Identifier: MIT
// Conversions and approximations that kernels choose by name.
#pragma once

#include <cmath>

#include "../device.cuh"
#include "../math.h"

namespace ocnet::ptx {

// Storage of mma and wgmma operands that have 19 significant bits of an fp32 word.
struct TFloat32 {
  uint32_t bits;
};

#if defined(__CUDACC__)

// ex2.approx.ftz.f32 (ISA: ex2): 2^x within 2 ulp; subnormal inputs and results are 0.
OCNET_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// cvt.rna.tf32.f32 (ISA: cvt): to the nearest TF32, ties away from 0.
OCNET_DEVICE uint32_t round_to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// cvt.rn.{bf16x2,f16x2}.f32 (ISA: cvt): two roundings to nearest even, `low` in the low half.
OCNET_DEVICE uint32_t pack_pair(float low, float high, BFloat16) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
OCNET_DEVICE uint32_t pack_pair(float low, float high, Float16) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
// cvt.rn.satfinite.e4m3x2.f32 (ISA: cvt; sm_89): four roundings to nearest even, `a` in the lowest
// byte; what is too large becomes 448.
OCNET_DEVICE uint32_t pack_four(float a, float b, float c, float d) {
  uint32_t bits;
  asm("{\n.reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};\n}"
      : "=r"(bits)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return bits;
}

#else

OCNET_EMULATED float flush_subnormal(float x) {
  return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x;
}

OCNET_EMULATED float exp2_approx(float x) {
  return flush_subnormal(static_cast<float>(std::exp2(static_cast<double>(flush_subnormal(x)))));
}

OCNET_EMULATED uint32_t round_to_tf32(float x) {
  const uint32_t bits = ocnet::detail::bit_cast<uint32_t>(x);
  if (!std::isfinite(x)) return (bits & 0xffffe000u) | (x != x ? 0x7fffe000u : 0u);
  return (bits + 0x1000u) & 0xffffe000u;
}

template <typename T>
OCNET_EMULATED uint32_t pack_pair(float low, float high, T) {
  return static_cast<uint32_t>(from_accumulator<T>(low).bits) |
         static_cast<uint32_t>(from_accumulator<T>(high).bits) << 16;
}

OCNET_EMULATED uint32_t pack_four(float a, float b, float c, float d) {
  const float values[] = {a, b, c, d};
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) {
    bits |= static_cast<uint32_t>(from_accumulator<Float8>(values[i]).bits) << (8 * i);
  }
  return bits;
}

// What a tensor core multiplies: the value of a pattern of 8 or 16 bits, or of an fp32 word without
// the 13 bits that TF32 lacks. mma and wgmma read TF32 operands by truncation.
OCNET_EMULATED double operand_value(uint32_t bits, TFloat32) {
  return ocnet::detail::bit_cast<float>(bits & 0xffffe000u);
}
template <typename T>
OCNET_EMULATED double operand_value(uint32_t bits, T) {
  return to_accumulator(T{static_cast<decltype(T::bits)>(bits)});
}

#endif

}  // namespace ocnet::ptx
