# SPDX-License-Identifier: MIT
"""Writes the text of every wgmma instruction: ``csrc/common/ptx/wgmma_instructions.cuh``.

The number of each operand is a literal in the text of an instruction, and follows from how many sums
come before it: each width has numbers of its own.

    python tools/generate_wgmma.py          # writes the header
    python tools/generate_wgmma.py --check  # fails if the header is not what would be written
"""

import sys
from pathlib import Path

HEADER = Path(__file__).resolve().parents[1] / "csrc/common/ptx/wgmma_instructions.cuh"
WIDTHS = range(8, 257, 8)
# C++ type, name in the instruction, channels, whether the layout of operands is a choice.
TYPES = [
    ("BFloat16", "bf16", 16, True),
    ("Float16", "f16", 16, True),
    ("TFloat32", "tf32", 8, False),
    ("Float8", "e4m3", 32, False),
]

TOP = r"""
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
@SHARED@
    } \
    template <typename T, int kTransposeB> \
    static OCNET_DEVICE void run(float (&d)[columns / 2], const uint32_t (&a)[4], uint64_t b_tile, int add) { \
@REGISTERS@
    } \
  };

"""

BOTTOM = """
#undef OCNET_WGMMA
#undef OCNET_WGMMA_REGISTERS
#undef OCNET_WGMMA_SHARED
#undef OCNET_WGMMA_BEGIN

}  // namespace ocnet::ptx
"""


def _choices(macro: str, layouts: str, numbers: str) -> str:
    lines = []
    for scalar, name, channels, chosen in TYPES:
        transposed = layouts if chosen else '""'
        instruction = f'{macro}(columns, "{channels}", "{name}", {transposed}, {numbers});'
        lines.append(f"      if constexpr (std::is_same_v<T, {scalar}>) {instruction} \\")
    return "\n".join(lines)


def _width(columns: int) -> list[str]:
    """Return its operands, as those of the width before and four more, and its instructions."""
    sums, before = columns // 2, columns - 8
    added = range(sums - 4, sums)
    names = ", ".join(f"%{i}" for i in added)
    operands = ", ".join(f'"+f"(d[{i}])' for i in added)
    numbers = ", ".join(str(i) for i in range(sums, sums + 7))
    all_names = f'OCNET_NAMES_{before} ", {names}"' if before else f'"{names}"'
    all_operands = f"OCNET_SUMS_{before}, {operands}" if before else operands
    return [
        f"#define OCNET_NAMES_{columns} {all_names}",
        f"#define OCNET_SUMS_{columns} {all_operands}",
        f"OCNET_WGMMA({columns}, {numbers})",
    ]


def header() -> str:
    """Return the whole header."""
    shared = _choices("OCNET_WGMMA_SHARED", '", %" #l ", %" #m', "i, j, k")
    registers = _choices("OCNET_WGMMA_REGISTERS", '", %" #o', "i, j, k, l, m, n")
    top = TOP.lstrip().replace("@SHARED@", shared).replace("@REGISTERS@", registers)
    return top + "\n".join(line for columns in WIDTHS for line in _width(columns)) + "\n" + BOTTOM


def main(arguments: list[str]) -> int:
    """Write the header or, with ``--check``, compare it."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    if not arguments:
        HEADER.write_text(header())
    elif HEADER.read_text() != header():
        print(f"{HEADER} is not what tools/generate_wgmma.py writes", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
