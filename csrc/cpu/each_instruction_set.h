// SPDX-License-Identifier: MIT
// No include guard: includes the file that OCNET_KERNELS names once for every instruction set,
// inside a namespace of its own that defines kBytes (of a vector) and OCNET_BYTES, the same for the
// preprocessor, and inside a region that selects the instruction set. What that file needs of other
// headers must be included before: their functions must not be compiled for one set only.

// 16-byte vectors are in the base of x86-64 (SSE2) and of aarch64 (NEON); without vectors a
// "vector" is one number.
namespace portable {
constexpr int kBytes = OCNET_VECTORS ? 16 : 1;
#define OCNET_BYTES 16
#include OCNET_KERNELS
#undef OCNET_BYTES
}  // namespace portable

#if OCNET_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace avx2 {
constexpr int kBytes = 32;
#define OCNET_BYTES 32
#include OCNET_KERNELS
#undef OCNET_BYTES
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
namespace avx512 {
constexpr int kBytes = 64;
#define OCNET_BYTES 64
#include OCNET_KERNELS
#undef OCNET_BYTES
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
