// SPDX-License-Identifier: MIT
// mbarrier (ISA: mbarrier): barriers in shared memory that count arrivals and copied bytes.
//
// An mbarrier is 8 bytes, 8-byte aligned. A phase completes when all arrivals it was initialised
// for and all bytes it expects are in; the next phase then begins. Phases have parity 0, 1, 0, ...
// Waiting for parity p returns once the latest phase of parity p has completed, so a wait for
// parity 1 on a fresh mbarrier returns at once. Arriving releases, waiting acquires, within the
// block: that orders copies and products on behalf of another block of the cluster, but what it
// stored itself is handed over by the cluster barrier (which the emulator does not insist on).
#pragma once

#include "address.cuh"

namespace ocnet::ptx {

#if defined(__CUDACC__)

// Follow with fence_mbarrier_init and a barrier before others use it.
OCNET_DEVICE void mbarrier_init(uint32_t mbarrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(mbarrier), "r"(arrivals) : "memory");
}
// Gives the bytes back to ordinary use.
OCNET_DEVICE void mbarrier_invalidate(uint32_t mbarrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(mbarrier) : "memory");
}
OCNET_DEVICE void mbarrier_arrive(uint32_t mbarrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(mbarrier) : "memory");
}
// At an address of cluster_address: an mbarrier of any block of the cluster. Not of the cluster's
// scope, which would have the thread wait for all it ever wrote.
OCNET_DEVICE void mbarrier_arrive_cluster(uint32_t mbarrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cluster.b64 _, [%0];" ::"r"(mbarrier)
               : "memory");
}
// Adds bytes to what the phase expects, with an arrival and without.
OCNET_DEVICE void mbarrier_arrive_expect(uint32_t mbarrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(mbarrier),
               "r"(bytes)
               : "memory");
}
OCNET_DEVICE void mbarrier_expect(uint32_t mbarrier, int bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(mbarrier),
               "r"(bytes)
               : "memory");
}
// Whether the phase has completed; may give up after a while.
OCNET_DEVICE bool mbarrier_test(uint32_t mbarrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(mbarrier), "r"(parity)
      : "memory");
  return done != 0;
}
OCNET_DEVICE void mbarrier_wait(uint32_t mbarrier, uint32_t parity) {
  while (!mbarrier_test(mbarrier, parity)) {
  }
}

#else

OCNET_EMULATED void mbarrier_init(uint32_t mbarrier, int arrivals) {
  emulator::mbarrier_init(mbarrier, arrivals);
}
OCNET_EMULATED void mbarrier_invalidate(uint32_t mbarrier) {
  emulator::mbarrier_invalidate(mbarrier);
}
OCNET_EMULATED void mbarrier_arrive(uint32_t mbarrier) {
  emulator::mbarrier_arrive(mbarrier, 1, 0);
}
OCNET_EMULATED void mbarrier_arrive_cluster(uint32_t mbarrier) {
  emulator::mbarrier_arrive(mbarrier, 1, 0);
}
OCNET_EMULATED void mbarrier_arrive_expect(uint32_t mbarrier, int bytes) {
  emulator::mbarrier_arrive(mbarrier, 1, bytes);
}
OCNET_EMULATED void mbarrier_expect(uint32_t mbarrier, int bytes) {
  emulator::mbarrier_arrive(mbarrier, 0, bytes);
}
OCNET_EMULATED bool mbarrier_test(uint32_t mbarrier, uint32_t parity) {
  return emulator::mbarrier_test(mbarrier, parity);
}
OCNET_EMULATED void mbarrier_wait(uint32_t mbarrier, uint32_t parity) {
  emulator::mbarrier_wait(mbarrier, parity);
}

#endif

}  // namespace ocnet::ptx
