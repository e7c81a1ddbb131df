// SPDX-License-Identifier: MIT
// The ops of the CUDA library for CPU tensors, their kernels in the emulator.
#include "oc_attention.cu"
