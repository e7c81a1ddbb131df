// SPDX-License-Identifier: MIT
// The hardware as kernels see it: indices, shared memory, barriers, shuffles, votes.
//
// Each primitive has two forms side by side: the device's, for nvcc, and the emulator's, for a
// plain C++ compiler (docs/emulator.md). Clusters, atomics and the PTX groups have headers of their
// own. (ISA: ...) names the section of the PTX ISA, whose numbers change with its versions.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>

#include "host_device.h"

#if !defined(__CUDACC__)
#include "emulation.h"
#endif

namespace ocnet::device {

constexpr int kWarpThreads = 32;
constexpr int kWarpgroupThreads = 128;

#if defined(__CUDACC__)

// %tid.x (ISA: Special Registers), read anew at every call: indices derived from it are then
// recomputed where they are used. Hoisted out of the main loops, dozens of them would spill.
OCNET_DEVICE int thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}
OCNET_DEVICE int64_t block_index() { return blockIdx.x; }
OCNET_DEVICE int64_t grid_blocks() { return gridDim.x; }

// The dynamic shared memory of the block, aligned to 1024 bytes: the period of the 128-byte
// swizzle.
template <typename T>
OCNET_DEVICE T* shared_memory() {
  extern __shared__ __align__(1024) unsigned char ocnet_shared_bytes[];
  return reinterpret_cast<T*>(ocnet_shared_bytes);
}

// bar.sync 0 (ISA: bar, barrier): every thread of the block; orders shared and global memory.
OCNET_DEVICE void barrier() { __syncthreads(); }

// bar.sync / bar.arrive with a name from 1 to 15 and a number of threads that is a multiple of 32.
OCNET_DEVICE void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
OCNET_DEVICE void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// bar.warp.sync (ISA: bar.warp.sync): the whole warp; orders its memory accesses.
OCNET_DEVICE void sync_warp() { __syncwarp(); }

// shfl.sync (ISA: shfl.sync) of the whole warp. The value of the lane whose index differs in the
// bits of `lane_mask`, and of a given lane. Orders no memory.
template <typename T>
OCNET_DEVICE T shuffle_xor(T value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}
template <typename T>
OCNET_DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

// vote.sync (ISA: vote.sync) of the whole warp: bit i is lane i's.
OCNET_DEVICE uint32_t ballot(bool vote) { return __ballot_sync(0xffffffffu, vote); }

// elect.sync (ISA: elect.sync) of the whole warp: true in one lane, the same every time.
OCNET_DEVICE bool elect_one() {
  uint32_t elected;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(elected));
  return elected != 0;
}

// One line of text, for debugging.
template <typename... Values>
OCNET_DEVICE void print(const char* format, Values... values) {
  printf(format, values...);
}

#else

OCNET_EMULATED int thread_index() { return emulator::thread_index(); }
OCNET_EMULATED int64_t block_index() { return emulator::block_index(); }
OCNET_EMULATED int64_t grid_blocks() { return emulator::grid_blocks(); }

template <typename T>
OCNET_EMULATED T* shared_memory() {
  return static_cast<T*>(emulator::shared_memory());
}

OCNET_EMULATED void barrier() { emulator::block_barrier(); }
OCNET_EMULATED void named_barrier_sync(int id, int threads) {
  emulator::named_barrier(id, threads, true);
}
OCNET_EMULATED void named_barrier_arrive(int id, int threads) {
  emulator::named_barrier(id, threads, false);
}
OCNET_EMULATED void sync_warp() { emulator::sync_warp(); }

template <typename T>
OCNET_EMULATED T shuffle(T value, int lane) {
  const T* const lanes =
      static_cast<const T*>(emulator::gather("shfl.sync", kWarpThreads, &value, sizeof(T)));
  return lanes[lane % kWarpThreads];
}
template <typename T>
OCNET_EMULATED T shuffle_xor(T value, int lane_mask) {
  const T* const lanes =
      static_cast<const T*>(emulator::gather("shfl.sync", kWarpThreads, &value, sizeof(T)));
  return lanes[(emulator::thread_index() % kWarpThreads) ^ lane_mask];
}
OCNET_EMULATED uint32_t ballot(bool vote) {
  const bool* const lanes =
      static_cast<const bool*>(emulator::gather("vote.sync", kWarpThreads, &vote, sizeof(bool)));
  uint32_t bits = 0;
  for (int lane = 0; lane < kWarpThreads; ++lane)
    bits |= static_cast<uint32_t>(lanes[lane]) << lane;
  return bits;
}
OCNET_EMULATED bool elect_one() {
  emulator::gather("elect.sync", kWarpThreads, "", 1);
  return emulator::thread_index() % kWarpThreads == 0;
}
template <typename... Values>
OCNET_EMULATED void print(const char* format, Values... values) {
  emulator::print(format, values...);
}

#endif

OCNET_DEVICE int lane_index() { return thread_index() % kWarpThreads; }
OCNET_DEVICE int warp_index() { return thread_index() / kWarpThreads; }
OCNET_DEVICE bool any(bool vote) { return ballot(vote) != 0; }
OCNET_DEVICE bool all(bool vote) { return ballot(vote) == 0xffffffffu; }

}  // namespace ocnet::device
