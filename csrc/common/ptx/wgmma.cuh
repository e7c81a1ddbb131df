// SPDX-License-Identifier: MIT
// wgmma (ISA: Asynchronous Warpgroup Level Matrix Instructions; sm_90a): products of one warpgroup,
// 64 rows by N columns, N = 8, 16, .. 256, and 16 channels (8 for TF32), accumulated in registers.
//
// d += a b, or d = a b without `accumulate`. Warp w of the four holds rows 16 w .. 16 w + 15; with
// g = lane / 4 and t = lane % 4, d[4 j + i] is row 16 w + g + 8 (i / 2), column 8 j + 2 t + i % 2.
// B comes from shared memory, A from there or from registers, laid out as the a of mma.cuh.
//
// The rules, which the emulator enforces:
//   wgmma_fence() after any other access to d or to A's registers, before the products;
//   fence_proxy_async() by the threads that wrote the tiles, then a barrier, before the products;
//   wgmma_commit() after them, and wgmma_wait() before d is read or A or a tile is overwritten.
//   Until then d and A must stay in scope.
#pragma once

#include <type_traits>

#include "arithmetic.cuh"
#include "descriptor.h"

namespace ocnet::ptx {

// Which axis of an operand is contiguous in shared memory. TF32 operands must be kChannels.
enum class Contiguous { kChannels, kTokens };

#if defined(__CUDACC__)

OCNET_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
OCNET_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kInFlight>
OCNET_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kInFlight) : "memory");
}
// Keeps the compiler from moving accesses to registers across this point: before wgmma_fence and
// after wgmma_wait.
template <int kCount>
OCNET_DEVICE void hold_registers(float (&registers)[kCount]) {
  OCNET_UNROLL
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

// clang-format off
// Register numbers must be literals in the text of an instruction: lists of them, four at a time,
// and the outputs that they stand for.
#define OCNET_NAMES(a, b, c, d) "%" #a ", %" #b ", %" #c ", %" #d
#define OCNET_SUMS(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define OCNET_NAMES_8 OCNET_NAMES(0, 1, 2, 3)
#define OCNET_NAMES_16 OCNET_NAMES_8 ", " OCNET_NAMES(4, 5, 6, 7)
#define OCNET_NAMES_24 OCNET_NAMES_16 ", " OCNET_NAMES(8, 9, 10, 11)
#define OCNET_NAMES_32 OCNET_NAMES_24 ", " OCNET_NAMES(12, 13, 14, 15)
#define OCNET_NAMES_40 OCNET_NAMES_32 ", " OCNET_NAMES(16, 17, 18, 19)
#define OCNET_NAMES_48 OCNET_NAMES_40 ", " OCNET_NAMES(20, 21, 22, 23)
#define OCNET_NAMES_56 OCNET_NAMES_48 ", " OCNET_NAMES(24, 25, 26, 27)
#define OCNET_NAMES_64 OCNET_NAMES_56 ", " OCNET_NAMES(28, 29, 30, 31)
#define OCNET_NAMES_72 OCNET_NAMES_64 ", " OCNET_NAMES(32, 33, 34, 35)
#define OCNET_NAMES_80 OCNET_NAMES_72 ", " OCNET_NAMES(36, 37, 38, 39)
#define OCNET_NAMES_88 OCNET_NAMES_80 ", " OCNET_NAMES(40, 41, 42, 43)
#define OCNET_NAMES_96 OCNET_NAMES_88 ", " OCNET_NAMES(44, 45, 46, 47)
#define OCNET_NAMES_104 OCNET_NAMES_96 ", " OCNET_NAMES(48, 49, 50, 51)
#define OCNET_NAMES_112 OCNET_NAMES_104 ", " OCNET_NAMES(52, 53, 54, 55)
#define OCNET_NAMES_120 OCNET_NAMES_112 ", " OCNET_NAMES(56, 57, 58, 59)
#define OCNET_NAMES_128 OCNET_NAMES_120 ", " OCNET_NAMES(60, 61, 62, 63)
#define OCNET_NAMES_136 OCNET_NAMES_128 ", " OCNET_NAMES(64, 65, 66, 67)
#define OCNET_NAMES_144 OCNET_NAMES_136 ", " OCNET_NAMES(68, 69, 70, 71)
#define OCNET_NAMES_152 OCNET_NAMES_144 ", " OCNET_NAMES(72, 73, 74, 75)
#define OCNET_NAMES_160 OCNET_NAMES_152 ", " OCNET_NAMES(76, 77, 78, 79)
#define OCNET_NAMES_168 OCNET_NAMES_160 ", " OCNET_NAMES(80, 81, 82, 83)
#define OCNET_NAMES_176 OCNET_NAMES_168 ", " OCNET_NAMES(84, 85, 86, 87)
#define OCNET_NAMES_184 OCNET_NAMES_176 ", " OCNET_NAMES(88, 89, 90, 91)
#define OCNET_NAMES_192 OCNET_NAMES_184 ", " OCNET_NAMES(92, 93, 94, 95)
#define OCNET_NAMES_200 OCNET_NAMES_192 ", " OCNET_NAMES(96, 97, 98, 99)
#define OCNET_NAMES_208 OCNET_NAMES_200 ", " OCNET_NAMES(100, 101, 102, 103)
#define OCNET_NAMES_216 OCNET_NAMES_208 ", " OCNET_NAMES(104, 105, 106, 107)
#define OCNET_NAMES_224 OCNET_NAMES_216 ", " OCNET_NAMES(108, 109, 110, 111)
#define OCNET_NAMES_232 OCNET_NAMES_224 ", " OCNET_NAMES(112, 113, 114, 115)
#define OCNET_NAMES_240 OCNET_NAMES_232 ", " OCNET_NAMES(116, 117, 118, 119)
#define OCNET_NAMES_248 OCNET_NAMES_240 ", " OCNET_NAMES(120, 121, 122, 123)
#define OCNET_NAMES_256 OCNET_NAMES_248 ", " OCNET_NAMES(124, 125, 126, 127)
#define OCNET_SUMS_8 OCNET_SUMS(0)
#define OCNET_SUMS_16 OCNET_SUMS_8, OCNET_SUMS(4)
#define OCNET_SUMS_24 OCNET_SUMS_16, OCNET_SUMS(8)
#define OCNET_SUMS_32 OCNET_SUMS_24, OCNET_SUMS(12)
#define OCNET_SUMS_40 OCNET_SUMS_32, OCNET_SUMS(16)
#define OCNET_SUMS_48 OCNET_SUMS_40, OCNET_SUMS(20)
#define OCNET_SUMS_56 OCNET_SUMS_48, OCNET_SUMS(24)
#define OCNET_SUMS_64 OCNET_SUMS_56, OCNET_SUMS(28)
#define OCNET_SUMS_72 OCNET_SUMS_64, OCNET_SUMS(32)
#define OCNET_SUMS_80 OCNET_SUMS_72, OCNET_SUMS(36)
#define OCNET_SUMS_88 OCNET_SUMS_80, OCNET_SUMS(40)
#define OCNET_SUMS_96 OCNET_SUMS_88, OCNET_SUMS(44)
#define OCNET_SUMS_104 OCNET_SUMS_96, OCNET_SUMS(48)
#define OCNET_SUMS_112 OCNET_SUMS_104, OCNET_SUMS(52)
#define OCNET_SUMS_120 OCNET_SUMS_112, OCNET_SUMS(56)
#define OCNET_SUMS_128 OCNET_SUMS_120, OCNET_SUMS(60)
#define OCNET_SUMS_136 OCNET_SUMS_128, OCNET_SUMS(64)
#define OCNET_SUMS_144 OCNET_SUMS_136, OCNET_SUMS(68)
#define OCNET_SUMS_152 OCNET_SUMS_144, OCNET_SUMS(72)
#define OCNET_SUMS_160 OCNET_SUMS_152, OCNET_SUMS(76)
#define OCNET_SUMS_168 OCNET_SUMS_160, OCNET_SUMS(80)
#define OCNET_SUMS_176 OCNET_SUMS_168, OCNET_SUMS(84)
#define OCNET_SUMS_184 OCNET_SUMS_176, OCNET_SUMS(88)
#define OCNET_SUMS_192 OCNET_SUMS_184, OCNET_SUMS(92)
#define OCNET_SUMS_200 OCNET_SUMS_192, OCNET_SUMS(96)
#define OCNET_SUMS_208 OCNET_SUMS_200, OCNET_SUMS(100)
#define OCNET_SUMS_216 OCNET_SUMS_208, OCNET_SUMS(104)
#define OCNET_SUMS_224 OCNET_SUMS_216, OCNET_SUMS(108)
#define OCNET_SUMS_232 OCNET_SUMS_224, OCNET_SUMS(112)
#define OCNET_SUMS_240 OCNET_SUMS_232, OCNET_SUMS(116)
#define OCNET_SUMS_248 OCNET_SUMS_240, OCNET_SUMS(120)
#define OCNET_SUMS_256 OCNET_SUMS_248, OCNET_SUMS(124)

#define OCNET_SHARED(columns, depth, type, transposed, a, b, p, ta, tb)                      \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p ", 0;\n"                              \
               "wgmma.mma_async.sync.aligned.m64n" #columns depth ".f32." type "." type      \
               " {" OCNET_NAMES_##columns "}, %" #a ", %" #b ", p, 1, 1" transposed ";\n}"   \
               : OCNET_SUMS_##columns                                                        \
               : "l"(a_tile), "l"(b_tile), "r"(add), "n"(kTransposeA), "n"(kTransposeB))
#define OCNET_REGISTERS(columns, depth, type, transposed, a, b, c, d, e, p, tb)              \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p ", 0;\n"                              \
               "wgmma.mma_async.sync.aligned.m64n" #columns depth ".f32." type "." type      \
               " {" OCNET_NAMES_##columns "}, {" OCNET_NAMES(a, b, c, d) "}, %" #e           \
               ", p, 1, 1" transposed ";\n}"                                                 \
               : OCNET_SUMS_##columns                                                        \
               : "r"(a_registers[0]), "r"(a_registers[1]), "r"(a_registers[2]),              \
                 "r"(a_registers[3]), "l"(b_tile), "r"(add), "n"(kTransposeB))

template <int kColumns>
struct WgmmaInstruction;

// The numbers after the columns are those of the operands that follow the sums.
#define OCNET_COLUMNS(columns, i, j, k, l, m, n, o)                                          \
  template <>                                                                                \
  struct WgmmaInstruction<columns> {                                                         \
    template <typename T, int kTransposeA, int kTransposeB>                                  \
    static OCNET_DEVICE void run(float (&d)[columns / 2], uint64_t a_tile, uint64_t b_tile,  \
                                 int add) {                                                  \
      if constexpr (std::is_same_v<T, BFloat16>) {                                           \
        OCNET_SHARED(columns, "k16", "bf16", ", %" #l ", %" #m, i, j, k, l, m);              \
      } else if constexpr (std::is_same_v<T, Float16>) {                                     \
        OCNET_SHARED(columns, "k16", "f16", ", %" #l ", %" #m, i, j, k, l, m);               \
      } else {                                                                               \
        OCNET_SHARED(columns, "k8", "tf32", "", i, j, k, l, m);                              \
      }                                                                                      \
    }                                                                                        \
    template <typename T, int kTransposeB>                                                   \
    static OCNET_DEVICE void run(float (&d)[columns / 2], const uint32_t (&a_registers)[4],  \
                                 uint64_t b_tile, int add) {                                 \
      if constexpr (std::is_same_v<T, BFloat16>) {                                           \
        OCNET_REGISTERS(columns, "k16", "bf16", ", %" #o, i, j, k, l, m, n, o);              \
      } else if constexpr (std::is_same_v<T, Float16>) {                                     \
        OCNET_REGISTERS(columns, "k16", "f16", ", %" #o, i, j, k, l, m, n, o);               \
      } else {                                                                               \
        OCNET_REGISTERS(columns, "k8", "tf32", "", i, j, k, l, m, n, o);                     \
      }                                                                                      \
    }                                                                                        \
  };
OCNET_COLUMNS(8, 4, 5, 6, 7, 8, 9, 10)
OCNET_COLUMNS(16, 8, 9, 10, 11, 12, 13, 14)
OCNET_COLUMNS(24, 12, 13, 14, 15, 16, 17, 18)
OCNET_COLUMNS(32, 16, 17, 18, 19, 20, 21, 22)
OCNET_COLUMNS(40, 20, 21, 22, 23, 24, 25, 26)
OCNET_COLUMNS(48, 24, 25, 26, 27, 28, 29, 30)
OCNET_COLUMNS(56, 28, 29, 30, 31, 32, 33, 34)
OCNET_COLUMNS(64, 32, 33, 34, 35, 36, 37, 38)
OCNET_COLUMNS(72, 36, 37, 38, 39, 40, 41, 42)
OCNET_COLUMNS(80, 40, 41, 42, 43, 44, 45, 46)
OCNET_COLUMNS(88, 44, 45, 46, 47, 48, 49, 50)
OCNET_COLUMNS(96, 48, 49, 50, 51, 52, 53, 54)
OCNET_COLUMNS(104, 52, 53, 54, 55, 56, 57, 58)
OCNET_COLUMNS(112, 56, 57, 58, 59, 60, 61, 62)
OCNET_COLUMNS(120, 60, 61, 62, 63, 64, 65, 66)
OCNET_COLUMNS(128, 64, 65, 66, 67, 68, 69, 70)
OCNET_COLUMNS(136, 68, 69, 70, 71, 72, 73, 74)
OCNET_COLUMNS(144, 72, 73, 74, 75, 76, 77, 78)
OCNET_COLUMNS(152, 76, 77, 78, 79, 80, 81, 82)
OCNET_COLUMNS(160, 80, 81, 82, 83, 84, 85, 86)
OCNET_COLUMNS(168, 84, 85, 86, 87, 88, 89, 90)
OCNET_COLUMNS(176, 88, 89, 90, 91, 92, 93, 94)
OCNET_COLUMNS(184, 92, 93, 94, 95, 96, 97, 98)
OCNET_COLUMNS(192, 96, 97, 98, 99, 100, 101, 102)
OCNET_COLUMNS(200, 100, 101, 102, 103, 104, 105, 106)
OCNET_COLUMNS(208, 104, 105, 106, 107, 108, 109, 110)
OCNET_COLUMNS(216, 108, 109, 110, 111, 112, 113, 114)
OCNET_COLUMNS(224, 112, 113, 114, 115, 116, 117, 118)
OCNET_COLUMNS(232, 116, 117, 118, 119, 120, 121, 122)
OCNET_COLUMNS(240, 120, 121, 122, 123, 124, 125, 126)
OCNET_COLUMNS(248, 124, 125, 126, 127, 128, 129, 130)
OCNET_COLUMNS(256, 128, 129, 130, 131, 132, 133, 134)

#undef OCNET_COLUMNS
#undef OCNET_REGISTERS
#undef OCNET_SHARED
// clang-format on

template <typename T, int kColumns, Contiguous kA, Contiguous kB>
OCNET_DEVICE void wgmma(float (&d)[kColumns / 2], uint64_t a_tile, uint64_t b_tile,
                        bool accumulate) {
  WgmmaInstruction<kColumns>::template run<T, static_cast<int>(kA), static_cast<int>(kB)>(
      d, a_tile, b_tile, accumulate);
}
template <typename T, int kColumns, Contiguous kB>
OCNET_DEVICE void wgmma(float (&d)[kColumns / 2], const uint32_t (&a)[4], uint64_t b_tile,
                        bool accumulate) {
  WgmmaInstruction<kColumns>::template run<T, static_cast<int>(kB)>(d, a, b_tile, accumulate);
}

#else

OCNET_EMULATED void wgmma_fence() { emulator::wgmma_fence(); }
OCNET_EMULATED void wgmma_commit() { emulator::wgmma_commit(); }
template <int kInFlight>
OCNET_EMULATED void wgmma_wait() {
  emulator::wgmma_wait(kInFlight);
}
template <int kCount>
OCNET_EMULATED void hold_registers(float (&)[kCount]) {}

OCNET_EMULATED emulator::OperandType operand_type(BFloat16) {
  return emulator::OperandType::kBFloat16;
}
OCNET_EMULATED emulator::OperandType operand_type(Float16) {
  return emulator::OperandType::kFloat16;
}
OCNET_EMULATED emulator::OperandType operand_type(TFloat32) {
  return emulator::OperandType::kTFloat32;
}

template <typename T, int kColumns, Contiguous kA, Contiguous kB>
OCNET_EMULATED void wgmma(float (&d)[kColumns / 2], uint64_t a_tile, uint64_t b_tile,
                          bool accumulate) {
  static_assert(kColumns % 8 == 0 && kColumns <= 256, "N is 8, 16, .. 256");
  emulator::Wgmma operation{};
  operation.type = operand_type(T{});
  operation.columns = kColumns;
  operation.a_tokens_contiguous = kA == Contiguous::kTokens;
  operation.b_tokens_contiguous = kB == Contiguous::kTokens;
  operation.accumulate = accumulate;
  operation.a_descriptor = a_tile;
  operation.b_descriptor = b_tile;
  operation.accumulators = d;
  emulator::wgmma(operation);
}
template <typename T, int kColumns, Contiguous kB>
OCNET_EMULATED void wgmma(float (&d)[kColumns / 2], const uint32_t (&a)[4], uint64_t b_tile,
                          bool accumulate) {
  static_assert(kColumns % 8 == 0 && kColumns <= 256, "N is 8, 16, .. 256");
  emulator::Wgmma operation{};
  operation.type = operand_type(T{});
  operation.columns = kColumns;
  operation.a = a;
  operation.b_tokens_contiguous = kB == Contiguous::kTokens;
  operation.accumulate = accumulate;
  operation.b_descriptor = b_tile;
  operation.accumulators = d;
  emulator::wgmma(operation);
}

#endif

}  // namespace ocnet::ptx
