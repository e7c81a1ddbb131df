// SPDX-License-Identifier: MIT
// mma.sync (ISA: Matrix Fragments for mma.m16n8k8 and mma.m16n8k16): products of one warp from
// registers, on sm_80 and later.
//
// d += a b. With g = lane / 4 and t = lane % 4, of the 16 x 8 sums d[0], d[1] are (g, 2t), (g,
// 2t+1) and d[2], d[3] are those of row g + 8.
//   m16n8k16, 16-bit pairs: a[0..3] hold (g, 2t..), (g+8, 2t..), (g, 2t+8..), (g+8, 2t+8..);
//   b[0], b[1] hold channels 2t.. and 2t+8.. of column g.
//   m16n8k8, TF32 words: a[0..3] hold (g, t), (g+8, t), (g, t+4), (g+8, t+4);
//   b[0], b[1] hold channels t and t+4 of column g.
#pragma once

#include "arithmetic.cuh"

namespace ocnet::ptx {

#if defined(__CUDACC__)

#define OCNET_MMA(shape_and_types)                                                \
  asm volatile("mma.sync.aligned." shape_and_types                                \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

OCNET_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], BFloat16) {
  OCNET_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
}
OCNET_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Float16) {
  OCNET_MMA("m16n8k16.row.col.f32.f16.f16.f32");
}
OCNET_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], TFloat32) {
  OCNET_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}

#undef OCNET_MMA

#else

struct MmaOperands {
  uint32_t a[4];
  uint32_t b[2];
};

// Register and half of a channel: 16-bit operands keep two channels in a register.
struct MmaPlace {
  int thread;  // lane % 4
  int upper;   // second half of the channels
  int shift;
};
OCNET_EMULATED MmaPlace mma_place(int channel, TFloat32) { return {channel % 4, channel / 4, 0}; }
template <typename T>
OCNET_EMULATED MmaPlace mma_place(int channel, T) {
  return {channel % 8 / 2, channel / 8, channel % 2 * 16};
}

// Products are exact; they and the accumulator are summed in double and rounded once. The device
// aligns and truncates them instead.
template <typename T>
OCNET_EMULATED void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T type) {
  MmaOperands own;
  std::memcpy(own.a, a, sizeof(a));
  std::memcpy(own.b, b, sizeof(b));
  const auto* const lanes = static_cast<const MmaOperands*>(
      emulator::gather("mma.sync", device::kWarpThreads, &own, sizeof(own)));
  const int lane = device::thread_index() % device::kWarpThreads;
  const int channels = sizeof(T) == 4 ? 8 : 16;
  for (int i = 0; i < 4; ++i) {
    const int group = lane / 4;
    const int column = lane % 4 * 2 + i % 2;
    double sum = d[i];
    for (int channel = 0; channel < channels; ++channel) {
      const MmaPlace place = mma_place(channel, type);
      const uint32_t left = lanes[group * 4 + place.thread].a[i / 2 + 2 * place.upper];
      const uint32_t right = lanes[column * 4 + place.thread].b[place.upper];
      sum += operand_value(left >> place.shift, type) * operand_value(right >> place.shift, type);
    }
    d[i] = static_cast<float>(sum);
  }
}

#endif

}  // namespace ocnet::ptx
