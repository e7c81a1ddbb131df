// SPDX-License-Identifier: MIT
// griddepcontrol (ISA: griddepcontrol; sm_90): a launch that begins before the one before it in the
// stream has ended (Grid::programmatic in ../launch.cuh).
//
// Until it waits, a kernel may do what needs nothing of earlier launches: mbarriers, prefetches of
// tensor maps, indices. Before sm_90 launches follow each other, and there is nothing to do.
#pragma once

#include "../device.cuh"

namespace ocnet::ptx {

#if defined(__CUDACC__)

// Until every earlier launch has ended and what it wrote can be seen. Before it, a launch that may
// begin early touches no global memory; other threads learn of it through a barrier.
OCNET_DEVICE void wait_for_earlier_launches() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// From here on the next launch may begin, once all blocks have come here or ended. It says nothing
// of memory: the next launch waits for the end of this one.
OCNET_DEVICE void allow_next_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#else

OCNET_EMULATED void wait_for_earlier_launches() { emulator::wait_for_earlier_launches(); }
OCNET_EMULATED void allow_next_launch() {}

#endif

}  // namespace ocnet::ptx
