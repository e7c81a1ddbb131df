// SPDX-License-Identifier: MIT
// The text of wgmma.mma_async (ISA: wgmma.mma_async), for each width. Written by
// tools/generate_wgmma.py: change it there. wgmma.cuh has the functions that kernels call.
// clang-format off
#pragma once

#include <type_traits>

#include "arithmetic.cuh"

namespace ocnet::ptx {

// Sums are operands 0 .. columns / 2 - 1; `p` and the letters after it number those that follow.
#define OCNET_WGMMA_BEGIN(columns, channels, type, p) \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %" #p ", 0;\n" \
  "wgmma.mma_async.sync.aligned.m64n" #columns "k" channels ".f32." type "." type " {" OCNET_NAMES_##columns "}, "
#define OCNET_WGMMA_SHARED(columns, channels, type, transposed, i, j, k) \
  asm volatile(OCNET_WGMMA_BEGIN(columns, channels, type, k) "%" #i ", %" #j ", p, 1, 1" transposed ";\n}" \
               : OCNET_SUMS_##columns : "l"(a_tile), "l"(b_tile), "r"(add), "n"(kTransposeA), "n"(kTransposeB))
#define OCNET_WGMMA_REGISTERS(columns, channels, type, transposed, i, j, k, l, m, n) \
  asm volatile(OCNET_WGMMA_BEGIN(columns, channels, type, n) "{%" #i ", %" #j ", %" #k ", %" #l "}, %" #m \
               ", p, 1, 1" transposed ";\n}" \
               : OCNET_SUMS_##columns \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_tile), "r"(add), "n"(kTransposeB))

template <int kColumns>
struct WgmmaInstruction;

#define OCNET_WGMMA(columns, i, j, k, l, m, n, o) \
  template <> struct WgmmaInstruction<columns> { \
    template <typename T, int kTransposeA, int kTransposeB> \
    static OCNET_DEVICE void run(float (&d)[columns / 2], uint64_t a_tile, uint64_t b_tile, int add) { \
      if constexpr (std::is_same_v<T, BFloat16>) OCNET_WGMMA_SHARED(columns, "16", "bf16", ", %" #l ", %" #m, i, j, k); \
      if constexpr (std::is_same_v<T, Float16>) OCNET_WGMMA_SHARED(columns, "16", "f16", ", %" #l ", %" #m, i, j, k); \
      if constexpr (std::is_same_v<T, TFloat32>) OCNET_WGMMA_SHARED(columns, "8", "tf32", "", i, j, k); \
      if constexpr (std::is_same_v<T, Float8>) OCNET_WGMMA_SHARED(columns, "32", "e4m3", "", i, j, k); \
    } \
    template <typename T, int kTransposeB> \
    static OCNET_DEVICE void run(float (&d)[columns / 2], const uint32_t (&a)[4], uint64_t b_tile, int add) { \
      if constexpr (std::is_same_v<T, BFloat16>) OCNET_WGMMA_REGISTERS(columns, "16", "bf16", ", %" #o, i, j, k, l, m, n); \
      if constexpr (std::is_same_v<T, Float16>) OCNET_WGMMA_REGISTERS(columns, "16", "f16", ", %" #o, i, j, k, l, m, n); \
      if constexpr (std::is_same_v<T, TFloat32>) OCNET_WGMMA_REGISTERS(columns, "8", "tf32", "", i, j, k, l, m, n); \
      if constexpr (std::is_same_v<T, Float8>) OCNET_WGMMA_REGISTERS(columns, "32", "e4m3", "", i, j, k, l, m, n); \
    } \
  };

#define OCNET_NAMES_8 "%0, %1, %2, %3"
#define OCNET_SUMS_8 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
OCNET_WGMMA(8, 4, 5, 6, 7, 8, 9, 10)
#define OCNET_NAMES_16 OCNET_NAMES_8 ", %4, %5, %6, %7"
#define OCNET_SUMS_16 OCNET_SUMS_8, "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
OCNET_WGMMA(16, 8, 9, 10, 11, 12, 13, 14)
#define OCNET_NAMES_24 OCNET_NAMES_16 ", %8, %9, %10, %11"
#define OCNET_SUMS_24 OCNET_SUMS_16, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
OCNET_WGMMA(24, 12, 13, 14, 15, 16, 17, 18)
#define OCNET_NAMES_32 OCNET_NAMES_24 ", %12, %13, %14, %15"
#define OCNET_SUMS_32 OCNET_SUMS_24, "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
OCNET_WGMMA(32, 16, 17, 18, 19, 20, 21, 22)
#define OCNET_NAMES_40 OCNET_NAMES_32 ", %16, %17, %18, %19"
#define OCNET_SUMS_40 OCNET_SUMS_32, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
OCNET_WGMMA(40, 20, 21, 22, 23, 24, 25, 26)
#define OCNET_NAMES_48 OCNET_NAMES_40 ", %20, %21, %22, %23"
#define OCNET_SUMS_48 OCNET_SUMS_40, "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
OCNET_WGMMA(48, 24, 25, 26, 27, 28, 29, 30)
#define OCNET_NAMES_56 OCNET_NAMES_48 ", %24, %25, %26, %27"
#define OCNET_SUMS_56 OCNET_SUMS_48, "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27])
OCNET_WGMMA(56, 28, 29, 30, 31, 32, 33, 34)
#define OCNET_NAMES_64 OCNET_NAMES_56 ", %28, %29, %30, %31"
#define OCNET_SUMS_64 OCNET_SUMS_56, "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
OCNET_WGMMA(64, 32, 33, 34, 35, 36, 37, 38)
#define OCNET_NAMES_72 OCNET_NAMES_64 ", %32, %33, %34, %35"
#define OCNET_SUMS_72 OCNET_SUMS_64, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
OCNET_WGMMA(72, 36, 37, 38, 39, 40, 41, 42)
#define OCNET_NAMES_80 OCNET_NAMES_72 ", %36, %37, %38, %39"
#define OCNET_SUMS_80 OCNET_SUMS_72, "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
OCNET_WGMMA(80, 40, 41, 42, 43, 44, 45, 46)
#define OCNET_NAMES_88 OCNET_NAMES_80 ", %40, %41, %42, %43"
#define OCNET_SUMS_88 OCNET_SUMS_80, "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43])
OCNET_WGMMA(88, 44, 45, 46, 47, 48, 49, 50)
#define OCNET_NAMES_96 OCNET_NAMES_88 ", %44, %45, %46, %47"
#define OCNET_SUMS_96 OCNET_SUMS_88, "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
OCNET_WGMMA(96, 48, 49, 50, 51, 52, 53, 54)
#define OCNET_NAMES_104 OCNET_NAMES_96 ", %48, %49, %50, %51"
#define OCNET_SUMS_104 OCNET_SUMS_96, "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51])
OCNET_WGMMA(104, 52, 53, 54, 55, 56, 57, 58)
#define OCNET_NAMES_112 OCNET_NAMES_104 ", %52, %53, %54, %55"
#define OCNET_SUMS_112 OCNET_SUMS_104, "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
OCNET_WGMMA(112, 56, 57, 58, 59, 60, 61, 62)
#define OCNET_NAMES_120 OCNET_NAMES_112 ", %56, %57, %58, %59"
#define OCNET_SUMS_120 OCNET_SUMS_112, "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59])
OCNET_WGMMA(120, 60, 61, 62, 63, 64, 65, 66)
#define OCNET_NAMES_128 OCNET_NAMES_120 ", %60, %61, %62, %63"
#define OCNET_SUMS_128 OCNET_SUMS_120, "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
OCNET_WGMMA(128, 64, 65, 66, 67, 68, 69, 70)
#define OCNET_NAMES_136 OCNET_NAMES_128 ", %64, %65, %66, %67"
#define OCNET_SUMS_136 OCNET_SUMS_128, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
OCNET_WGMMA(136, 68, 69, 70, 71, 72, 73, 74)
#define OCNET_NAMES_144 OCNET_NAMES_136 ", %68, %69, %70, %71"
#define OCNET_SUMS_144 OCNET_SUMS_136, "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
OCNET_WGMMA(144, 72, 73, 74, 75, 76, 77, 78)
#define OCNET_NAMES_152 OCNET_NAMES_144 ", %72, %73, %74, %75"
#define OCNET_SUMS_152 OCNET_SUMS_144, "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75])
OCNET_WGMMA(152, 76, 77, 78, 79, 80, 81, 82)
#define OCNET_NAMES_160 OCNET_NAMES_152 ", %76, %77, %78, %79"
#define OCNET_SUMS_160 OCNET_SUMS_152, "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
OCNET_WGMMA(160, 80, 81, 82, 83, 84, 85, 86)
#define OCNET_NAMES_168 OCNET_NAMES_160 ", %80, %81, %82, %83"
#define OCNET_SUMS_168 OCNET_SUMS_160, "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83])
OCNET_WGMMA(168, 84, 85, 86, 87, 88, 89, 90)
#define OCNET_NAMES_176 OCNET_NAMES_168 ", %84, %85, %86, %87"
#define OCNET_SUMS_176 OCNET_SUMS_168, "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
OCNET_WGMMA(176, 88, 89, 90, 91, 92, 93, 94)
#define OCNET_NAMES_184 OCNET_NAMES_176 ", %88, %89, %90, %91"
#define OCNET_SUMS_184 OCNET_SUMS_176, "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91])
OCNET_WGMMA(184, 92, 93, 94, 95, 96, 97, 98)
#define OCNET_NAMES_192 OCNET_NAMES_184 ", %92, %93, %94, %95"
#define OCNET_SUMS_192 OCNET_SUMS_184, "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
OCNET_WGMMA(192, 96, 97, 98, 99, 100, 101, 102)
#define OCNET_NAMES_200 OCNET_NAMES_192 ", %96, %97, %98, %99"
#define OCNET_SUMS_200 OCNET_SUMS_192, "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99])
OCNET_WGMMA(200, 100, 101, 102, 103, 104, 105, 106)
#define OCNET_NAMES_208 OCNET_NAMES_200 ", %100, %101, %102, %103"
#define OCNET_SUMS_208 OCNET_SUMS_200, "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103])
OCNET_WGMMA(208, 104, 105, 106, 107, 108, 109, 110)
#define OCNET_NAMES_216 OCNET_NAMES_208 ", %104, %105, %106, %107"
#define OCNET_SUMS_216 OCNET_SUMS_208, "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107])
OCNET_WGMMA(216, 108, 109, 110, 111, 112, 113, 114)
#define OCNET_NAMES_224 OCNET_NAMES_216 ", %108, %109, %110, %111"
#define OCNET_SUMS_224 OCNET_SUMS_216, "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
OCNET_WGMMA(224, 112, 113, 114, 115, 116, 117, 118)
#define OCNET_NAMES_232 OCNET_NAMES_224 ", %112, %113, %114, %115"
#define OCNET_SUMS_232 OCNET_SUMS_224, "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115])
OCNET_WGMMA(232, 116, 117, 118, 119, 120, 121, 122)
#define OCNET_NAMES_240 OCNET_NAMES_232 ", %116, %117, %118, %119"
#define OCNET_SUMS_240 OCNET_SUMS_232, "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119])
OCNET_WGMMA(240, 120, 121, 122, 123, 124, 125, 126)
#define OCNET_NAMES_248 OCNET_NAMES_240 ", %120, %121, %122, %123"
#define OCNET_SUMS_248 OCNET_SUMS_240, "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123])
OCNET_WGMMA(248, 124, 125, 126, 127, 128, 129, 130)
#define OCNET_NAMES_256 OCNET_NAMES_248 ", %124, %125, %126, %127"
#define OCNET_SUMS_256 OCNET_SUMS_248, "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
OCNET_WGMMA(256, 128, 129, 130, 131, 132, 133, 134)

#undef OCNET_WGMMA
#undef OCNET_WGMMA_REGISTERS
#undef OCNET_WGMMA_SHARED
#undef OCNET_WGMMA_BEGIN

}  // namespace ocnet::ptx
