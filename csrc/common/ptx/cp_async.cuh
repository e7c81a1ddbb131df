// SPDX-License-Identifier: MIT
// cp.async (ISA: Non-bulk copy): copies of 4, 8 or 16 bytes from global to shared memory, in the
// background of the thread that issues them.
#pragma once

#include "address.cuh"

namespace ocnet::ptx {

#if defined(__CUDACC__)

// Copies the first `valid_bytes` of kBytes and writes zeros after them. Both sides are aligned to
// kBytes; with 0 valid bytes nothing is read, but `global` must still be a valid address.
template <int kBytes>
OCNET_DEVICE void copy_async(uint32_t shared, const void* global, int valid_bytes = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  if constexpr (kBytes == 16) {  // past L1: tiles are read once by a block
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
                 "r"(valid_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(global),
                 "n"(kBytes), "r"(valid_bytes)
                 : "memory");
  }
}
// Closes a group of this thread's copies; waits until at most kInFlight groups are still going.
OCNET_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kInFlight>
OCNET_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kInFlight) : "memory");
}
// cp.async.mbarrier.arrive.noinc (ISA: cp.async.mbarrier.arrive): one of the arrivals that the
// barrier counts, made once all copies that this thread has issued so far are done.
OCNET_DEVICE void copy_async_arrive(uint32_t mbarrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(mbarrier) : "memory");
}

#else

template <int kBytes>
OCNET_EMULATED void copy_async(uint32_t shared, const void* global, int valid_bytes = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  emulator::copy_async(shared, global, kBytes, valid_bytes);
}
OCNET_EMULATED void copy_async_commit() { emulator::copy_commit(); }
template <int kInFlight>
OCNET_EMULATED void copy_async_wait() {
  emulator::copy_wait(kInFlight);
}
OCNET_EMULATED void copy_async_arrive(uint32_t mbarrier) { emulator::copy_arrive(mbarrier); }

#endif

}  // namespace ocnet::ptx
