// SPDX-License-Identifier: MIT
// The hardware as kernels see it: thread and block indices, barriers, shuffles, shared memory. nvcc
// gets the device; a plain C++ compiler gets declarations, defined by tests/csrc/block_executor.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

#if defined(__CUDACC__)

#define OCNET_DEVICE __device__ __forceinline__
#define OCNET_KERNEL(threads, blocks_per_multiprocessor) \
  __global__ void __launch_bounds__(threads, blocks_per_multiprocessor)

namespace ocnet::device {

// threadIdx.x, read anew at every call: indices derived from it are then recomputed where they are
// used. Hoisted out of the main loops, dozens of them would spill.
OCNET_DEVICE int thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}
OCNET_DEVICE int64_t block_index() { return blockIdx.x; }
OCNET_DEVICE void barrier() { __syncthreads(); }

// The value of the lane whose index differs in the bits of `lane_mask`. The whole warp takes part.
template <typename T>
OCNET_DEVICE T shuffle_xor(T value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}

// The dynamic shared memory of the block.
template <typename T>
OCNET_DEVICE T* shared_memory() {
  extern __shared__ __align__(16) unsigned char ocnet_shared_bytes[];
  return reinterpret_cast<T*>(ocnet_shared_bytes);
}

}  // namespace ocnet::device

#else

#define OCNET_DEVICE inline
#define OCNET_KERNEL(threads, blocks_per_multiprocessor) inline void

namespace ocnet::device {

int thread_index();
int64_t block_index();
void barrier();
uint64_t shuffle_xor_bits(uint64_t bits, int lane_mask);
void* shared_bytes();

template <typename T>
T shuffle_xor(T value, int lane_mask) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 64 bits");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle_xor_bits(bits, lane_mask);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
T* shared_memory() {
  return static_cast<T*>(shared_bytes());
}

}  // namespace ocnet::device

#endif
