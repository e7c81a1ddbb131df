// SPDX-License-Identifier: MIT
// setmaxnreg (ISA: Miscellaneous Instructions: setmaxnreg; sm_90a): moves registers between the
// warpgroups of a block.
//
// 24 to 256, a multiple of 8, by all warps of a warpgroup. Raising waits until others have lowered.
// It takes effect only in a kernel with OCNET_KERNEL(threads, 1) whose roles are the branches of
// one if / else.
#pragma once

#include "../device.cuh"

namespace ocnet::ptx {

#if defined(__CUDACC__)

template <int kRegisters>
OCNET_DEVICE void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
OCNET_DEVICE void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#else

template <int kRegisters>
OCNET_EMULATED void raise_registers() {
  emulator::set_max_registers(kRegisters, true);
}
template <int kRegisters>
OCNET_EMULATED void lower_registers() {
  emulator::set_max_registers(kRegisters, false);
}

#endif

}  // namespace ocnet::ptx
