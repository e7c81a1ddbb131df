// SPDX-License-Identifier: MIT
// Fences between what threads do and what the asynchronous units do (ISA: membar, fence).
#pragma once

#include "../device.cuh"

namespace ocnet::ptx {

#if defined(__CUDACC__)

// Before a barrier after which wgmma or a bulk copy touches shared memory that this thread wrote.
OCNET_DEVICE void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// After initialising mbarriers, before the barrier that lets others use them.
OCNET_DEVICE void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

#else

OCNET_EMULATED void fence_proxy_async() { emulator::fence_proxy_async(); }
OCNET_EMULATED void fence_mbarrier_init() { emulator::fence_mbarrier_init(); }

#endif

}  // namespace ocnet::ptx
