// SPDX-License-Identifier: MIT
// ldmatrix (ISA: Warp-level matrix load instruction) and stmatrix (ISA: Warp-level matrix store
// instruction; sm_90): 8 x 8 matrices of 16-bit elements between shared memory and the registers of
// a warp.
//
// Lane i of 8 m .. 8 m + 7 gives the address of row i % 8 of matrix m: 16 bytes, 16-byte aligned.
// Register m of lane i holds elements 2 (i % 4) and 2 (i % 4) + 1 of row i / 4 of matrix m; with
// kTransposed, of its column i / 4. Every lane's address must be valid, also where it is not used.
#pragma once

#include "address.cuh"

namespace ocnet::ptx {

#if defined(__CUDACC__)

template <bool kTransposed = false>
OCNET_DEVICE void load_matrices(uint32_t (&to)[1], uint32_t address) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(to[0])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(to[0])
                 : "r"(address)
                 : "memory");
  }
}
template <bool kTransposed = false>
OCNET_DEVICE void load_matrices(uint32_t (&to)[2], uint32_t address) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(address)
                 : "memory");
  }
}
template <bool kTransposed = false>
OCNET_DEVICE void load_matrices(uint32_t (&to)[4], uint32_t address) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  }
}

template <bool kTransposed = false>
OCNET_DEVICE void store_matrices(uint32_t address, const uint32_t (&from)[1]) {
  if constexpr (kTransposed) {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(address),
                 "r"(from[0])
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(address), "r"(from[0])
                 : "memory");
  }
}
template <bool kTransposed = false>
OCNET_DEVICE void store_matrices(uint32_t address, const uint32_t (&from)[2]) {
  if constexpr (kTransposed) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address),
                 "r"(from[0]), "r"(from[1])
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(address),
                 "r"(from[0]), "r"(from[1])
                 : "memory");
  }
}
template <bool kTransposed = false>
OCNET_DEVICE void store_matrices(uint32_t address, const uint32_t (&from)[4]) {
  if constexpr (kTransposed) {
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
        "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
        : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
                 : "memory");
  }
}

#else

template <bool kTransposed = false, int kMatrices>
OCNET_EMULATED void load_matrices(uint32_t (&to)[kMatrices], uint32_t address) {
  const auto* const rows = static_cast<const uint32_t*>(
      emulator::gather("ldmatrix", device::kWarpThreads, &address, sizeof(address)));
  const int lane = device::thread_index() % device::kWarpThreads;
  for (int matrix = 0; matrix < kMatrices; ++matrix) {
    uint16_t pair[2];
    for (int half = 0; half < 2; ++half) {
      const int along = lane % 4 * 2 + half;
      const int row = kTransposed ? along : lane / 4;
      const int column = kTransposed ? lane / 4 : along;
      uint16_t elements[8];
      emulator::read_shared("ldmatrix", rows[matrix * 8 + row], elements, sizeof(elements));
      pair[half] = elements[column];
    }
    std::memcpy(&to[matrix], pair, sizeof(pair));
  }
}

// Lane i writes row i % 8 of matrix i / 8.
template <bool kTransposed = false, int kMatrices>
OCNET_EMULATED void store_matrices(uint32_t address, const uint32_t (&from)[kMatrices]) {
  const auto* const lanes = static_cast<const uint32_t*>(
      emulator::gather("stmatrix", device::kWarpThreads, from, sizeof(from)));
  const int lane = device::thread_index() % device::kWarpThreads;
  const int matrix = lane / 8;
  if (matrix >= kMatrices) return;
  uint16_t elements[8];
  for (int column = 0; column < 8; ++column) {
    const int line = kTransposed ? column : lane % 8;
    const int along = kTransposed ? lane % 8 : column;
    const uint32_t pair = lanes[(line * 4 + along / 2) * kMatrices + matrix];
    elements[column] = static_cast<uint16_t>(pair >> (along % 2 * 16));
  }
  emulator::write_shared("stmatrix", address, elements, sizeof(elements));
}

#endif

}  // namespace ocnet::ptx
