// SPDX-License-Identifier: MIT
// The 32-bit addresses of shared memory that PTX takes.
#pragma once

#include "../device.cuh"

namespace ocnet::ptx {

#if defined(__CUDACC__)

// cvta.to.shared (ISA: cvta).
OCNET_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
// mapa.shared::cluster (ISA: mapa): the same place in another block of the cluster.
OCNET_DEVICE uint32_t cluster_address(uint32_t address, int rank) {
  uint32_t mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}
// The same number, of which the compiler knows nothing: what is derived from it, such as the
// descriptors of a loop, is computed where it is used instead of being kept in registers.
OCNET_DEVICE uint32_t opaque(uint32_t number) {
  asm volatile("" : "+r"(number));
  return number;
}

#else

OCNET_EMULATED uint32_t shared_address(const void* pointer) {
  return emulator::shared_address(pointer);
}
OCNET_EMULATED uint32_t cluster_address(uint32_t address, int rank) {
  return emulator::cluster_address(address, rank);
}
OCNET_EMULATED uint32_t opaque(uint32_t number) { return number; }

#endif

}  // namespace ocnet::ptx
