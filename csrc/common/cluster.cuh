// SPDX-License-Identifier: MIT
// Clusters of blocks (sm_90): ranks, their barrier, and each other's shared memory. In code for
// older GPUs, which launch no clusters, a block is one of its own.
#pragma once

#include "device.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define OCNET_CLUSTER_ASM(...)
#else
#define OCNET_CLUSTER_ASM(...) asm volatile(__VA_ARGS__)
#endif

namespace ocnet::device {

#if defined(__CUDACC__)

// %cluster_ctarank and %cluster_nctarank (ISA: Special Registers).
OCNET_DEVICE int cluster_rank() {
  int rank = 0;
  OCNET_CLUSTER_ASM("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
OCNET_DEVICE int cluster_blocks() {
  int blocks = 1;
  OCNET_CLUSTER_ASM("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return blocks;
}

// barrier.cluster (ISA: barrier.cluster) of every warp of every block: arriving releases what the
// thread wrote, waiting acquires what the others did.
OCNET_DEVICE void cluster_arrive() {
  OCNET_CLUSTER_ASM("barrier.cluster.arrive.release.aligned;" :: : "memory");
}
OCNET_DEVICE void cluster_wait() {
  OCNET_CLUSTER_ASM("barrier.cluster.wait.acquire.aligned;" :: : "memory");
}

// mapa (ISA: mapa): the same place in the shared memory of another block. It may be read and
// written while that block runs: meet at a cluster barrier before the first access and after the
// last.
template <typename T>
OCNET_DEVICE T* cluster_pointer(T* shared, int rank) {
  auto mapped = reinterpret_cast<uint64_t>(shared);
  OCNET_CLUSTER_ASM("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(mapped), "r"(rank));
  return reinterpret_cast<T*>(mapped);
}

#else

OCNET_EMULATED int cluster_rank() { return emulator::cluster_rank(); }
OCNET_EMULATED int cluster_blocks() { return emulator::cluster_blocks(); }
OCNET_EMULATED void cluster_arrive() { emulator::cluster_arrive(); }
OCNET_EMULATED void cluster_wait() { emulator::cluster_wait(); }
template <typename T>
OCNET_EMULATED T* cluster_pointer(T* shared, int rank) {
  return static_cast<T*>(emulator::cluster_pointer(shared, rank));
}

#endif

OCNET_DEVICE void cluster_barrier() {
  cluster_arrive();
  cluster_wait();
}

}  // namespace ocnet::device
