// SPDX-License-Identifier: MIT
// Qualifiers that let one definition serve nvcc and a plain C++ compiler.
#pragma once

#if defined(__CUDACC__)
#define OCNET_HOST_DEVICE __host__ __device__ __forceinline__
#define OCNET_UNROLL _Pragma("unroll")
#define OCNET_UNROLL_BY_4 _Pragma("unroll 4")
#define OCNET_UNROLL_BY_8 _Pragma("unroll 8")
#else
#define OCNET_HOST_DEVICE inline
#define OCNET_UNROLL
#define OCNET_UNROLL_BY_4
#define OCNET_UNROLL_BY_8
#endif
