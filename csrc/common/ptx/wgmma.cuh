// SPDX-License-Identifier: MIT
// wgmma (ISA: Asynchronous Warpgroup Level Matrix Instructions; sm_90a): products of one warpgroup,
// 64 rows by N columns, N = 8, 16, .. 256, and 32 bytes of channels (16 of bf16 and fp16, 8 of
// TF32, 32 of e4m3), accumulated in registers.
//
// d += a b, or d = a b without `accumulate`. Warp w of the four holds rows 16 w .. 16 w + 15; with
// g = lane / 4 and t = lane % 4, d[4 j + i] is row 16 w + g + 8 (i / 2), column 8 j + 2 t + i % 2.
// B comes from shared memory, A from there or from registers, laid out as the a of mma.cuh. Of e4m3
// a word holds four channels: a[0..3] hold (g, 4t..), (g+8, 4t..), (g, 4t+16..), (g+8, 4t+16..).
// Sums of e4m3 products are known to keep about 14 bits on Hopper, those in d included.
//
// The rules, which the emulator enforces:
//   wgmma_fence() after any other access to d or to A's registers, before the products;
//   fence_proxy_async() by the threads that wrote the tiles, then a barrier, before the products;
//   wgmma_commit() after them, and wgmma_wait() before d is read or A or a tile is overwritten.
//   Until then d and A must stay in scope.
#pragma once

#include "arithmetic.cuh"
#include "descriptor.h"
#if defined(__CUDACC__)
#include "wgmma_instructions.cuh"
#endif

namespace ocnet::ptx {

// Which axis of an operand is contiguous in shared memory.
enum class Contiguous { kChannels, kTokens };

template <typename T, int kColumns, Contiguous... kOperands>
OCNET_HOST_DEVICE constexpr void check_wgmma() {
  static_assert(kColumns % 8 == 0 && kColumns >= 8 && kColumns <= 256, "N is 8, 16, .. 256");
  static_assert(sizeof(T) == 2 || ((kOperands == Contiguous::kChannels) && ...),
                "operands that are not of 16 bits must have contiguous channels");
}

#if defined(__CUDACC__)

OCNET_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
OCNET_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kInFlight>
OCNET_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kInFlight) : "memory");
}
// Keeps the compiler from moving accesses to registers across this point: before wgmma_fence and
// after wgmma_wait.
template <int kCount>
OCNET_DEVICE void hold_registers(float (&registers)[kCount]) {
  OCNET_UNROLL
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

template <typename T, int kColumns, Contiguous kA, Contiguous kB>
OCNET_DEVICE void wgmma(float (&d)[kColumns / 2], uint64_t a_tile, uint64_t b_tile,
                        bool accumulate) {
  check_wgmma<T, kColumns, kA, kB>();
  WgmmaInstruction<kColumns>::template run<T, static_cast<int>(kA), static_cast<int>(kB)>(
      d, a_tile, b_tile, accumulate);
}
template <typename T, int kColumns, Contiguous kB>
OCNET_DEVICE void wgmma(float (&d)[kColumns / 2], const uint32_t (&a)[4], uint64_t b_tile,
                        bool accumulate) {
  check_wgmma<T, kColumns, kB>();
  WgmmaInstruction<kColumns>::template run<T, static_cast<int>(kB)>(d, a, b_tile, accumulate);
}

#else

OCNET_EMULATED void wgmma_fence() { emulator::wgmma_fence(); }
OCNET_EMULATED void wgmma_commit() { emulator::wgmma_commit(); }
template <int kInFlight>
OCNET_EMULATED void wgmma_wait() {
  emulator::wgmma_wait(kInFlight);
}
template <int kCount>
OCNET_EMULATED void hold_registers(float (&)[kCount]) {}

OCNET_EMULATED emulator::OperandType operand_type(BFloat16) {
  return emulator::OperandType::kBFloat16;
}
OCNET_EMULATED emulator::OperandType operand_type(Float16) {
  return emulator::OperandType::kFloat16;
}
OCNET_EMULATED emulator::OperandType operand_type(TFloat32) {
  return emulator::OperandType::kTFloat32;
}
OCNET_EMULATED emulator::OperandType operand_type(Float8) { return emulator::OperandType::kFloat8; }

template <typename T, int kColumns, Contiguous kA, Contiguous kB>
OCNET_EMULATED void wgmma(float (&d)[kColumns / 2], uint64_t a_tile, uint64_t b_tile,
                          bool accumulate) {
  check_wgmma<T, kColumns, kA, kB>();
  emulator::Wgmma operation{};
  operation.type = operand_type(T{});
  operation.columns = kColumns;
  operation.a_tokens_contiguous = kA == Contiguous::kTokens;
  operation.b_tokens_contiguous = kB == Contiguous::kTokens;
  operation.accumulate = accumulate;
  operation.a_descriptor = a_tile;
  operation.b_descriptor = b_tile;
  operation.accumulators = d;
  emulator::wgmma(operation);
}
template <typename T, int kColumns, Contiguous kB>
OCNET_EMULATED void wgmma(float (&d)[kColumns / 2], const uint32_t (&a)[4], uint64_t b_tile,
                          bool accumulate) {
  check_wgmma<T, kColumns, kB>();
  emulator::Wgmma operation{};
  operation.type = operand_type(T{});
  operation.columns = kColumns;
  operation.a = a;
  operation.b_tokens_contiguous = kB == Contiguous::kTokens;
  operation.accumulate = accumulate;
  operation.b_descriptor = b_tile;
  operation.accumulators = d;
  emulator::wgmma(operation);
}

#endif

}  // namespace ocnet::ptx
