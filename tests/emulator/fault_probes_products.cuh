// SPDX-License-Identifier: MIT
// Faults of warpgroup products: waits, fences, registers in flight, tiles and their addresses.
#pragma once

#include "common/ptx/fence.cuh"
#include "common/ptx/wgmma.cuh"
#include "fault_probes_common.cuh"

namespace ocnet::probes::faults {

enum class ProductFault {
  kUnwaited,
  kUncommitted,
  kUnfencedSums,
  kEarlyFence,
  kUnsetSums,
  kUnfencedTile,
  kUnsharedTile,
  kRewrittenTile,
  kRewrittenOperand,
  kLateOperand,
  kShiftedTile,
  kUnswizzledTile,
  kPastShared,
  kDivergent,
};

constexpr int kSide = 64;
constexpr int kSquareBytes = kSide * kSide * 2;
constexpr int kSquareRoom = 2 * kSquareBytes + 1024;

// 64 by 64 elements: a product of `data` with twice the identity.
template <ProductFault kFault>
struct FaultyProduct {
  const FaultParams& params;

  OCNET_DEVICE bool planted(ProductFault fault) const { return params.planted && fault == kFault; }

  OCNET_DEVICE BFloat16* element(int tile, int row, int channel) const {
    const uint32_t plain = static_cast<uint32_t>(tile * kSquareBytes + row * 128 + channel * 2);
    const bool swizzled = tile != 0 || !planted(ProductFault::kUnswizzledTile);
    const uint32_t at = swizzled ? ptx::swizzle_128(plain) : plain;
    return reinterpret_cast<BFloat16*>(device::shared_memory<unsigned char>() + at);
  }

  OCNET_DEVICE void fill() const {
    for (int i = device::thread_index(); i < kSide * kSide; i += device::kWarpgroupThreads) {
      const int row = i / kSide;
      const int channel = i % kSide;
      *element(0, row, channel) = from_accumulator<BFloat16>(params.data[i]);
      *element(1, row, channel) = from_accumulator<BFloat16>(row == channel ? 2.0f : 0.0f);
    }
    if (!planted(ProductFault::kUnfencedTile)) ptx::fence_proxy_async();
    if (!planted(ProductFault::kUnsharedTile)) device::barrier();
  }

  OCNET_DEVICE uint64_t descriptor(int tile, int product) const {
    const uint32_t shared = ptx::shared_address(device::shared_memory<unsigned char>());
    const bool diverges = planted(ProductFault::kDivergent) && device::warp_index() == 2;
    const int shift = planted(ProductFault::kShiftedTile)  ? 512
                      : planted(ProductFault::kPastShared) ? 2 * kSquareBytes
                                                           : 0;
    return ptx::tile_descriptor(
        shared + tile * (kSquareBytes + shift) + (diverges ? 0 : product * 32), 0, 1024);
  }

  static OCNET_DEVICE void multiply_16(float (&sums)[kSide / 2], uint64_t a, uint64_t b) {
    using ptx::Contiguous;
    ptx::wgmma<BFloat16, kSide, Contiguous::kChannels, Contiguous::kChannels>(sums, a, b, true);
  }

  OCNET_DEVICE void multiply(float (&sums)[kSide / 2]) const {
    const bool unfenced =
        planted(ProductFault::kUnfencedSums) || planted(ProductFault::kEarlyFence);
    if (!unfenced) ptx::wgmma_fence();
    for (int i = 0; i < kSide / 16; ++i) {
      multiply_16(sums, descriptor(0, i), descriptor(1, i));  // fault: product
    }
    if (!planted(ProductFault::kUncommitted)) ptx::wgmma_commit();
  }

  OCNET_DEVICE void store(const float (&sums)[kSide / 2]) const {
    const int thread = device::thread_index();
    for (int i = 0; i < kSide / 2; ++i) {
      const int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
      const int column = i / 4 * 8 + thread % 4 * 2 + i % 2;
      const float sum = sums[i];  // fault: read_sums
      params.result[row * kSide + column] = sum;
    }
  }
};

template <ProductFault kFault>
OCNET_KERNEL(device::kWarpgroupThreads, 1)
square_product(FaultParams params) {
  const FaultyProduct<kFault> product{params};
  product.fill();
  float sums[kSide / 2];
  if (product.planted(ProductFault::kEarlyFence)) ptx::wgmma_fence();
  if (!product.planted(ProductFault::kUnsetSums)) {
    for (float& sum : sums) sum = 0;
  }
  product.multiply(sums);
  if (product.planted(ProductFault::kRewrittenTile) && device::thread_index() == 5) {
    product.element(0, 40, 3)->bits = 0;  // fault: rewritten_tile
  }
  if (!product.planted(ProductFault::kUnwaited)) ptx::wgmma_wait<0>();
  ptx::hold_registers(sums);
  product.store(sums);
  ptx::wgmma_wait<0>();
}

// A from registers: each warp takes its 16 rows of `data`, with the elements where mma.cuh has
// them.
template <ProductFault kFault>
OCNET_KERNEL(device::kWarpgroupThreads, 1)
register_product(FaultParams params) {
  const FaultyProduct<kFault> product{params};
  const int thread = device::thread_index();
  product.fill();
  uint32_t a[kSide / 16][4];
  for (int i = 0; i < kSide / 4; ++i) {
    const int row = thread / 32 * 16 + thread % 32 / 4 + i % 2 * 8;
    const float* const from =
        params.data + row * kSide + i / 4 * 16 + i / 2 % 2 * 8 + thread % 4 * 2;
    a[i / 4][i % 4] = ptx::pack_pair(from[0], from[1], BFloat16{});
  }
  float sums[kSide / 2];
  ptx::wgmma_fence();
  if (product.planted(ProductFault::kLateOperand)) a[2][3] = 0;
  for (int i = 0; i < kSide / 16; ++i) {
    ptx::wgmma<BFloat16, kSide, ptx::Contiguous::kChannels>(  // fault: late_operand
        sums, a[i], product.descriptor(1, i), i > 0);
  }
  ptx::wgmma_commit();
  if (product.planted(ProductFault::kRewrittenOperand)) {
    a[0][1] = 0;  // fault: rewritten_operand
  }
  ptx::wgmma_wait<0>();
  ptx::hold_registers(sums);
  product.store(sums);
}

}  // namespace ocnet::probes::faults
