// SPDX-License-Identifier: MIT
// Where elements of a tile lie in shared memory under the 128-byte swizzle, and the matrix
// descriptors that tell wgmma (ISA: Matrix Descriptor Format). Host and device.
//
// A tile is cut into rows of 128 bytes along its contiguous axis: 64 elements of 16 bits, 32 of
// TF32. 8 such rows, 1024 bytes aligned to 1024, are an atom; within it, 16-byte unit u of row r
// lies at unit u ^ r. The copy engine writes a box of 128 bytes by n rows in just this layout.
#pragma once

#include <cstdint>

#include "../host_device.h"

namespace ocnet::ptx {

// The address of a byte that would lie at `address` without the swizzle: bits 4-6 ^= bits 7-9.
OCNET_HOST_DEVICE uint32_t swizzle_128(uint32_t address) {
  return address ^ ((address >> 3) & 0x70u);
}

// `leading_bytes` and `stride_bytes` are multiples of 16 below 2^18.
//   Contiguous channels: rows are tokens. stride_bytes leads from 8 tokens to the next 8 (1024
//   where they follow each other); leading_bytes is not used. A product of 32 bytes of channels
//   starts at the address of its first channel: 32 bytes further for the next one in the same 128.
//   Contiguous tokens: rows are channels. leading_bytes leads from 64 tokens to the next 64,
//   stride_bytes from 8 channels to the next 8. A product of 16 channels takes two groups of 8.
OCNET_HOST_DEVICE uint64_t tile_descriptor(uint32_t address, uint32_t leading_bytes,
                                           uint32_t stride_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | static_cast<uint64_t>((stride_bytes & 0x3ffffu) >> 4) << 32 |
         static_cast<uint64_t>((leading_bytes & 0x3ffffu) >> 4) << 16 |
         static_cast<uint64_t>((address & 0x3ffffu) >> 4);
}

}  // namespace ocnet::ptx
