// SPDX-License-Identifier: MIT
// Qualifiers that let one definition serve nvcc and a plain C++ compiler.
#pragma once

#if defined(__CUDACC__)
#define OCNET_HOST_DEVICE __host__ __device__ __forceinline__
#define OCNET_DEVICE __device__ __forceinline__
#define OCNET_KERNEL(threads, blocks_per_multiprocessor) \
  __global__ void __launch_bounds__(threads, blocks_per_multiprocessor)
// A parameter that every thread reads in place; tensor maps must be in one.
#define OCNET_GRID_CONSTANT const __grid_constant__
#define OCNET_UNROLL _Pragma("unroll")
#define OCNET_UNROLL_BY_4 _Pragma("unroll 4")
#define OCNET_UNROLL_BY_8 _Pragma("unroll 8")
// As often as a constant of the code around it says.
#define OCNET_PRAGMA(text) _Pragma(#text)
#define OCNET_UNROLL_BY(times) OCNET_PRAGMA(unroll times)
#else
#define OCNET_HOST_DEVICE inline
#define OCNET_DEVICE inline
#define OCNET_KERNEL(threads, blocks_per_multiprocessor) inline void
#define OCNET_GRID_CONSTANT const
#define OCNET_UNROLL
#define OCNET_UNROLL_BY_4
#define OCNET_UNROLL_BY_8
#define OCNET_UNROLL_BY(times)
// The emulated form of a primitive. The emulator watches what kernels read and write by having the
// compiler instrument them; what the primitives do themselves is not the kernel's doing. Never
// inlined: the caller of the form is the line that a report names, so no form is called by another.
#define OCNET_EMULATED inline __attribute__((no_sanitize_thread, noinline))
#endif
