# SPDX-License-Identifier: MIT
"""Frozen tile sizes of the Triton kernels, and how a map is cut; nothing is timed at run time.

All kernels only stream: tiles are as large as keeps enough bytes in flight, and nothing is kept in
shared memory but what sums are exchanged through. How a map is cut depends on its sizes alone, so that
the same call sums in the same order everywhere. ``tests/ops/test_inplace_abn_compile.py`` compiles the
rows and asserts that nothing spills.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ocnet.ops._layout import ALIGNMENT
from ocnet.ops.inplace_abn.problem import Problem

Kernel = Literal["stats", "forward", "reduce", "apply"]

# Shared memory that a kernel may have without opting in, on every GPU: sums take little.
SHARED_MEMORY = 49152
# Parts at most that leave sums behind; their combination reads them all.
MOST_PARTS = 512
# Parts up to which every program combines them itself, one launch less: a vector of planes, a tile of
# as many rows as its channels allow without weighing against the map.
OWN_PARTS_PLANES = 64
OWN_PARTS_ROWS = 16
# Parts and channels that the combining kernels read at a time: they are few and wait for memory.
COMBINE_PARTS = 64
COMBINE_CHANNELS = 16
# Planes whose ends are read at a time, at most: a few numbers of each.
MOST_ENDS = 64


@dataclass(frozen=True)
class Tile:
    """How one program of a kernel cuts its work.

    Attributes:
        numbers: Numbers of a tile.
        width: Numbers of it that lie side by side in a wide plane, at least.
        channels: Channels of it that lie side by side in rows, at most.
        warps: Warps of one program.
        programs: Programs of a launch, at least, where the map has tiles for them.
    """

    numbers: int
    width: int
    channels: int
    warps: int
    programs: int


# By bytes of an element. Rows are read 128 bytes at a time, a whole line; planes as many bytes as the
# threads of a program read in one instruction.
TABLES: dict[int, dict[Kernel, Tile]] = {
    2: {
        # Two sums across the program for each tile, so tiles are large; more numbers than 32 for each
        # thread leave less than half of the threads of a multiprocessor.
        "stats": Tile(numbers=8192, width=2048, channels=64, warps=8, programs=1056),
        # Nothing is exchanged: small programs, and two rounds of them, even out the end of a launch.
        "forward": Tile(numbers=2048, width=1024, channels=64, warps=4, programs=4224),
        # Three sums are kept for each number of a tile.
        "reduce": Tile(numbers=2048, width=1024, channels=64, warps=4, programs=2112),
        "apply": Tile(numbers=2048, width=1024, channels=64, warps=4, programs=4224),
    },
    # The same bytes.
    4: {
        "stats": Tile(numbers=4096, width=1024, channels=32, warps=8, programs=1056),
        "forward": Tile(numbers=1024, width=512, channels=32, warps=4, programs=4224),
        "reduce": Tile(numbers=1024, width=512, channels=32, warps=4, programs=2112),
        "apply": Tile(numbers=1024, width=512, channels=32, warps=4, programs=4224),
    },
}


class Cut(NamedTuple):
    """Programs of a launch and their work.

    Attributes:
        grid: Programs.
        parts: Programs that share the numbers of a channel.
        arguments: Those of the kernel that say the same.
    """

    grid: tuple[int]
    parts: int
    arguments: dict[str, Any]


def padded(size: int) -> int:
    """Return the next power of two."""
    return 1 << max(size - 1, 0).bit_length()


def own_parts(rows: bool) -> int:
    """Return up to how many parts every program combines itself."""
    return OWN_PARTS_ROWS if rows else OWN_PARTS_PLANES


def _width(tile: Tile, length: int) -> int:
    """Return how many numbers of a plane a tile has.

    Each line of a tile costs its addresses, about a quarter of what ``tile.width`` numbers cost, and so
    does what is past the end of a plane.
    """
    widths, width = [], min(tile.numbers, padded(length))
    while width > tile.width:
        widths.append(width)
        width //= 2
    widths.append(width)
    return min(widths, key=lambda wide: -(-length // wide) * (4 * wide + tile.width))


def cut(problem: Problem, kernel: Kernel) -> Cut:
    """Return how a map is cut.

    A tile of rows is pixels by channels. A tile of planes is lines by positions; a line is a plane, or
    one of the blocks of a plane that is wider. What is read 16 bytes at a time begins and ends at multiples
    of 16 bytes; the ends of planes that do not are tiles of their own.

    Args:
        problem: The sizes.
        kernel: Which kernel.

    Returns:
        The cut.
    """
    tile = TABLES[problem.dtype.itemsize][kernel]
    wide = ALIGNMENT // problem.dtype.itemsize
    n, c, l = problem.N, problem.C, problem.L
    ends = not problem.rows and l % wide != 0
    # What is in groups of 16 bytes wherever a plane begins.
    whole = max(l - (wide - 1), 0) // wide * wide if ends else l
    if problem.rows:
        blocks, width = 1, min(tile.channels, padded(max(c, wide)))
        lines, channels = l, width
    else:
        width = _width(tile, max(whole, wide))
        blocks = max(-(-whole // width), 1)
        lines, channels = n * blocks, 1
    height = min(tile.numbers // width, padded(lines))
    tiles, slices = -(-lines // height), -(-c // channels)
    wanted = min(-(-tile.programs // slices), tiles)
    if kernel in ("stats", "reduce"):
        wanted = min(wanted, MOST_PARTS)
    each = -(-tiles // wanted)
    parts = -(-tiles // each)
    # Where it divides rows, compilers are told so by multiplying with it.
    factor = wide if problem.rows and c % wide == 0 else 1
    # At most half the numbers of a tile: each has an address of its own in registers.
    ends_height = min(padded(-(-n // parts)), MOST_ENDS, max(height * width // (4 * wide), 1))
    arguments = {
        "N": n, "C_OVER": c // factor, "L": l, "GROUPS": whole // wide, "BLOCKS": blocks,
        "PARTS": parts, "TILES": tiles, "EACH": each, "FACTOR": factor, "WIDE": wide,
        "BA": height, "BB": width, "BC": channels, "BE": ends_height,
        "ROWS": problem.rows, "ENDS": ends,
        # two reads of each thread at least
        "num_warps": max(1, min(tile.warps, height * width // (64 * wide))),
    }  # fmt: skip
    return Cut((slices * parts,), parts, arguments)
