// SPDX-License-Identifier: MIT
// Which instruction set the kernels use, and what the files that are compiled for each need
// (each_instruction_set.h).
#pragma once

#if defined(__GNUC__) || defined(__clang__)
#define OCNET_VECTORS 1
#define OCNET_PREFETCH(address) __builtin_prefetch(address, 0, 2)
#define OCNET_INLINE inline __attribute__((always_inline))
#define OCNET_OUTLINE __attribute__((noinline))
#else
#define OCNET_VECTORS 0
#define OCNET_PREFETCH(address)
#define OCNET_INLINE inline
#define OCNET_OUTLINE
#endif

#if defined(__clang__)
#define OCNET_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define OCNET_UNROLL _Pragma("GCC unroll 16")
// The notes are about the calling convention of wide vectors; no vector is passed in a real call.
#pragma GCC diagnostic ignored "-Wpsabi"
#else
#define OCNET_UNROLL
#endif

#if OCNET_VECTORS && defined(__x86_64__)
#define OCNET_X86 1
#include <immintrin.h>
#else
#define OCNET_X86 0
#endif

namespace ocnet::cpu {

// In order: each has what the one before has.
enum class InstructionSet { kPortable, kAvx2, kAvx512 };

// The widest that this processor runs.
InstructionSet instruction_set();

}  // namespace ocnet::cpu
