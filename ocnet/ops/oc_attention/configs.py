# SPDX-License-Identifier: MIT
"""Frozen tile sizes of the Triton kernels; nothing is timed or tuned at run time.

A tile is chosen by kernel, arithmetic, kind of GPU, version of Triton and the channels, padded to
powers of two. The rows of a table are tried from the top, and the first that is wide enough for both
channel counts is taken, so every legal call finds one. ``tests/ops/test_triton_compile.py`` compiles
the rows and asserts that they fit shared memory; what "spills" below was seen there.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

Kernel = Literal["forward", "value", "query", "key", "both"]
FewKernel = Literal["few", "few_query"]

# 16-bit products; float32 products rounded to TF32; float32 products of float32 accuracy.
Math = Literal["half", "tf32", "float32"]

# Opt-in shared memory of one block, bytes. Hopper's rows may use all of it. The others must fit the
# smallest among GPUs of compute capability 8.0 and later (8.6, 8.9 and 12.0; 8.0 has 166912), so
# that no GPU is left without a tile.
SHARED_MEMORY_HOPPER = 232448
SHARED_MEMORY_PORTABLE = 101376

# Tensor cores multiply at least 16 channels at a time.
MIN_CHANNELS = 16
MAX_CHANNELS = 512


@dataclass(frozen=True)
class Piece:
    """What one program of a kernel that only streams reads at a time.

    Attributes:
        rows: Tokens.
        width: Channels, at most.
    """

    rows: int
    width: int

    def channels(self, channels: int) -> int:
        """Return the channels of a piece of a matrix with so many."""
        return min(self.width, padded(channels))


# Kernels that only stream: modest pieces will do.
DELTA = Piece(32, 64)
COMBINE = Piece(32, 64)


@dataclass(frozen=True)
class Tile:
    """How one program of a kernel cuts its work.

    Attributes:
        rows: Tokens that the program keeps.
        cols: Tokens that pass by in one step.
        slice_e: Query and key channels multiplied at a time. Fewer than there are: the kept tile is
            read again in every step instead of staying on chip, which is what makes wide maps fit.
        slice_v: The same for value channels, which the score gradients multiply.
        out: Output channels of one program; further ones go to further programs, which compute the
            scores again.
        warps: Warps of one program.
        stages: Depth of the load pipeline.
        out_v: In the passes whose rows are keys, value channels whose gradient the program writes
            besides; 0 where the ``value`` kernel does that, because both sums have no room.
    """

    rows: int
    cols: int
    slice_e: int
    slice_v: int
    out: int
    warps: int
    stages: int
    out_v: int = 0


@dataclass(frozen=True)
class Row:
    """A tile and the padded channel counts up to which it is taken."""

    max_e: int
    max_ev: int
    tile: Tile


@dataclass(frozen=True)
class Few:
    """How one program of a kernel for few keys cuts its work.

    Attributes:
        rows: Queries of one step.
        keys0, keys1: Keys that stay on chip, in two blocks; the second may be 0.
        warps: Warps of one program.
        stages: Depth of the load pipeline.
        out: Output channels of one program; further ones go to further programs.
    """

    rows: int
    keys0: int
    keys1: int
    warps: int
    stages: int
    out: int = 256


Table = dict[Kernel, tuple[Row, ...]]

# Two-byte elements, compute capability 9.x: 128 rows feed two warp groups. Everything is as large
# as the registers (accumulator: rows x out, float32) and shared memory (tiles x stages) allow. No
# tile spills, in Triton 3.6 or 3.9.
_HOPPER_16: Table = {
    "forward": (
        # small tiles of channels: widest columns, deepest pipeline
        Row(64, 64, Tile(128, 128, 64, 64, 64, warps=8, stages=3)),
        Row(128, 128, Tile(128, 128, 128, 128, 128, warps=8, stages=3)),
        # 128 columns spill
        Row(128, 256, Tile(128, 64, 128, 256, 256, warps=8, stages=3)),
        # the main job's size, 196672 B
        Row(256, 256, Tile(128, 64, 256, 256, 256, warps=8, stages=2)),
        # scores are computed twice: 64 rows x 512 channels and a third tile do not fit (237600 B)
        Row(256, 512, Tile(128, 64, 256, 512, 256, warps=8, stages=2)),
        Row(512, 512, Tile(128, 128, 128, 512, 256, warps=8, stages=3)),
    ),
    "value": (
        Row(64, 64, Tile(128, 128, 64, 64, 64, warps=8, stages=3)),
        Row(128, 128, Tile(128, 128, 128, 128, 128, warps=8, stages=3)),
        Row(128, 256, Tile(128, 64, 128, 256, 256, warps=8, stages=3)),
        Row(256, 256, Tile(128, 64, 256, 256, 256, warps=8, stages=2)),
        # 64 rows keep all 512 output channels in registers, so scores are computed once
        Row(256, 512, Tile(64, 64, 256, 512, 512, warps=8, stages=2)),
        Row(512, 512, Tile(64, 128, 128, 512, 512, warps=8, stages=3)),
    ),
    "query": (
        Row(64, 64, Tile(128, 128, 64, 64, 64, warps=8, stages=3)),
        Row(128, 128, Tile(128, 64, 128, 128, 128, warps=8, stages=3)),
        Row(128, 256, Tile(128, 64, 128, 256, 128, warps=8, stages=2)),
        # 64 columns leave no room for a second stage
        Row(256, 256, Tile(128, 32, 256, 256, 256, warps=8, stages=2)),
        # two kept tiles no longer fit whole: one side is sliced
        Row(256, 512, Tile(128, 64, 256, 128, 256, warps=8, stages=2)),
        # the value side is one slice, kept: fewer columns, or it spills
        Row(512, 128, Tile(64, 64, 128, 128, 512, warps=8, stages=2)),
        Row(512, 512, Tile(64, 128, 128, 128, 512, warps=8, stages=3)),
    ),
    "key": (
        Row(64, 64, Tile(128, 128, 64, 64, 64, warps=8, stages=3, out_v=64)),
        Row(128, 128, Tile(128, 64, 128, 128, 128, warps=8, stages=3, out_v=128)),
        Row(128, 256, Tile(128, 64, 128, 256, 128, warps=8, stages=2)),
        # 64 rows and columns with both sums spill in Triton 3.9
        Row(256, 256, Tile(128, 32, 256, 256, 256, warps=8, stages=2)),
        Row(256, 512, Tile(128, 64, 256, 128, 256, warps=8, stages=2)),
        Row(512, 128, Tile(64, 64, 128, 128, 512, warps=8, stages=2)),
        Row(512, 512, Tile(64, 128, 128, 128, 512, warps=8, stages=3)),
    ),
    "both": (
        # one pass for both gradients: their sums fit beside each other
        Row(64, 64, Tile(128, 64, 64, 64, 64, warps=8, stages=3, out_v=64)),
        # two passes: 128 rows with both sums have no room, and 64 rows halve the score products
        Row(128, 128, Tile(128, 64, 128, 128, 128, warps=8, stages=2)),
        # three kept tiles and three that pass by; four warps, because 64 rows are one warp group's
        Row(128, 256, Tile(64, 32, 128, 256, 128, warps=4, stages=2)),
        # one pass needs eight warps, which leaves score products 16 columns wide
        Row(256, 256, Tile(64, 32, 256, 256, 256, warps=4, stages=2)),
        Row(256, 512, Tile(64, 128, 256, 128, 256, warps=8, stages=2)),
        # kept value tiles leave room for half the channels' sums
        Row(512, 128, Tile(64, 64, 128, 128, 256, warps=8, stages=2)),
        Row(512, 512, Tile(64, 64, 512, 128, 512, warps=8, stages=3)),
    ),
}

_HOPPER_16_TRITON_3_6: Table = {
    **_HOPPER_16,
    "key": (
        *_HOPPER_16["key"][:3],
        # both sums of 64 rows beside each other: four products where two passes make five
        Row(256, 256, Tile(64, 64, 256, 256, 256, warps=8, stages=2, out_v=256)),
        *_HOPPER_16["key"][4:],
    ),
}

# Two-byte elements, every other GPU: kept tiles live in registers there, and 99 KB must do.
_PORTABLE_16: Table = {
    "forward": (
        Row(64, 64, Tile(128, 128, 64, 64, 64, warps=8, stages=2)),
        Row(128, 128, Tile(128, 64, 128, 128, 128, warps=8, stages=2)),
        # 128 rows spill
        Row(64, 256, Tile(64, 64, 64, 256, 256, warps=8, stages=2)),
        Row(128, 256, Tile(128, 64, 128, 256, 256, warps=8, stages=2)),
        # 64 columns need 106496 B
        Row(256, 256, Tile(64, 32, 256, 256, 256, warps=8, stages=2)),
        # sliced reads: 512 kept channels do not fit in registers
        Row(512, 512, Tile(64, 64, 64, 256, 256, warps=8, stages=2)),
    ),
    "value": (
        Row(64, 64, Tile(128, 128, 64, 64, 64, warps=8, stages=3)),
        Row(128, 128, Tile(128, 64, 128, 128, 128, warps=8, stages=3)),
        Row(128, 256, Tile(128, 64, 128, 256, 256, warps=8, stages=2)),
        Row(256, 256, Tile(64, 32, 256, 256, 256, warps=8, stages=2)),
        Row(256, 512, Tile(64, 32, 256, 512, 512, warps=8, stages=2)),
        Row(512, 512, Tile(64, 64, 128, 256, 256, warps=8, stages=2)),
    ),
    "query": (
        Row(64, 64, Tile(128, 128, 64, 64, 64, warps=8, stages=3)),
        Row(128, 128, Tile(128, 64, 128, 128, 128, warps=8, stages=2)),
        Row(128, 256, Tile(64, 32, 128, 256, 128, warps=8, stages=2)),
        # two kept tiles of 256 channels leave no room for 64 columns: the value side is sliced
        Row(256, 256, Tile(64, 32, 256, 128, 256, warps=8, stages=2)),
        # 128 slices spill
        Row(512, 512, Tile(64, 32, 64, 64, 256, warps=8, stages=2)),
    ),
    "key": (
        # 64 columns spill in Triton 3.6
        Row(64, 64, Tile(128, 32, 64, 64, 64, warps=8, stages=3, out_v=64)),
        # 64 columns spill
        Row(32, 128, Tile(64, 32, 32, 128, 32, warps=8, stages=2, out_v=128)),
        # 32 columns spill
        Row(64, 256, Tile(64, 16, 64, 256, 64, warps=8, stages=2, out_v=256)),
        Row(128, 128, Tile(64, 64, 128, 128, 128, warps=8, stages=2, out_v=128)),
        Row(128, 256, Tile(64, 32, 128, 256, 128, warps=8, stages=2, out_v=256)),
        # two stages spill
        Row(256, 16, Tile(64, 32, 256, 16, 256, warps=8, stages=1)),
        Row(256, 256, Tile(64, 32, 256, 128, 256, warps=8, stages=2)),
        # two stages spill
        Row(32, 512, Tile(64, 32, 32, 64, 32, warps=8, stages=3)),
        Row(512, 512, Tile(64, 32, 64, 64, 256, warps=8, stages=2)),
    ),
    "both": (
        Row(64, 64, Tile(64, 32, 64, 64, 64, warps=8, stages=2, out_v=64)),
        # 64 columns need 107008 B
        Row(128, 128, Tile(64, 32, 128, 128, 128, warps=4, stages=2)),
        # with slices of 128, 128 value channels would be kept whole and need 102656 B
        Row(256, 256, Tile(64, 32, 256, 64, 256, warps=8, stages=2)),
        # 32 slices spill
        Row(32, 512, Tile(64, 32, 32, 64, 32, warps=8, stages=2)),
        # 64 slices spill
        Row(512, 512, Tile(64, 32, 32, 32, 256, warps=8, stages=2)),
    ),
}

# TF32, compute capability 9.x: tiles take twice the room, and Hopper's tensor cores want TF32 with
# its summed index side by side, so Triton keeps a turned copy of what has it otherwise.
_HOPPER_TF32_SUM = (
    Row(128, 128, Tile(128, 64, 128, 128, 128, warps=8, stages=2)),
    Row(256, 256, Tile(64, 32, 256, 256, 256, warps=8, stages=2)),
    Row(512, 512, Tile(64, 64, 64, 64, 256, warps=8, stages=2)),
)
_HOPPER_TF32_FEATURE = (
    Row(128, 128, Tile(64, 64, 128, 128, 128, warps=8, stages=2)),
    # sliced: two kept tiles of 256 channels and two that pass by do not fit
    Row(512, 512, Tile(64, 64, 64, 64, 256, warps=8, stages=2)),
)
_HOPPER_TF32: Table = {
    "forward": _HOPPER_TF32_SUM,
    "value": _HOPPER_TF32_SUM,
    "query": _HOPPER_TF32_FEATURE,
    "key": _HOPPER_TF32_FEATURE,
    "both": (
        Row(128, 128, Tile(64, 32, 128, 128, 128, warps=8, stages=2)),
        Row(512, 512, Tile(64, 64, 64, 64, 256, warps=8, stages=2)),
    ),
}

# float32, compute capability 9.x: each operand is three bfloat16 ones on chip, so slices are short.
# They also keep the tensor cores' own sums short, whose last bit is cut, not rounded: two steps of
# 16 channels for each of the six products, then an addition in float32. IEEE products on the CUDA
# cores spill thousands of bytes in the backward.
_SHORT_SLICES = (Row(512, 512, Tile(64, 32, 32, 32, 256, warps=8, stages=2)),)
# 256 sums spill where what they are made of is narrow
_FEW_SUMS = Tile(64, 32, 32, 32, 128, warps=8, stages=2)
_HOPPER_FLOAT32: Table = {
    "forward": _SHORT_SLICES,
    "value": (Row(32, 512, _FEW_SUMS), *_SHORT_SLICES),
    "query": (Row(512, 32, _FEW_SUMS), *_SHORT_SLICES),
    "key": (Row(512, 32, _FEW_SUMS), *_SHORT_SLICES),
    "both": (Row(512, 32, _FEW_SUMS), *_SHORT_SLICES),
}

# The others keep the parts of both operands in registers: beside 256 sums, 32 columns spill, up to
# 136 B. "both", with two tiles of products, spills at 16 columns too (8 to 16 B), unless its slices
# are half as wide.
_FEW_COLUMNS = (Row(512, 512, Tile(64, 16, 32, 32, 256, warps=8, stages=2)),)
_PORTABLE_FLOAT32_SUM = (Row(512, 128, _FEW_SUMS), *_FEW_COLUMNS)
_PORTABLE_FLOAT32: Table = {
    "forward": _PORTABLE_FLOAT32_SUM,
    "value": (
        # 32 columns spill in Triton 3.6
        Row(16, 32, Tile(64, 16, 16, 32, 32, warps=8, stages=2)),
        *_PORTABLE_FLOAT32_SUM,
    ),
    "query": _FEW_COLUMNS,
    "key": _FEW_COLUMNS,
    "both": (
        Row(128, 512, Tile(64, 16, 32, 32, 128, warps=8, stages=2)),
        Row(512, 512, Tile(64, 16, 16, 16, 256, warps=8, stages=2)),
    ),
}

# TF32, every other GPU.
_PORTABLE_TF32_SUM = (
    # two stages spill in Triton 3.6
    Row(64, 64, Tile(64, 32, 64, 64, 64, warps=8, stages=1)),
    Row(128, 128, Tile(64, 32, 128, 128, 128, warps=8, stages=2)),
    # 64 columns need 114688 B beside rows that are kept
    Row(64, 512, Tile(64, 32, 64, 64, 256, warps=8, stages=2)),
    Row(512, 512, Tile(64, 64, 64, 64, 256, warps=8, stages=2)),
)
_PORTABLE_TF32: Table = {
    "forward": _PORTABLE_TF32_SUM,
    # wider slices and more columns spill at one pair of widths or another
    "value": _FEW_COLUMNS,
    "query": _SHORT_SLICES,
    # 32 columns spill
    "key": _FEW_COLUMNS,
    "both": _FEW_COLUMNS,
}

# Two-byte elements, compute capability 9.x, up to 256 channels. One program runs on a
# multiprocessor, and what keeps the memory busy is the query tiles under way, so the pipeline is as
# deep as the room beside keys and values allows. From 65 keys on, a program writes half the
# channels: all sums beside all probabilities spill.
FEW: dict[FewKernel, tuple[Few, ...]] = {
    "few": (
        Few(64, 32, 0, warps=4, stages=4),
        Few(64, 64, 0, warps=4, stages=3),
        Few(64, 64, 32, warps=4, stages=3, out=128),
        Few(64, 128, 0, warps=4, stages=3, out=128),
        Few(64, 128, 32, warps=4, stages=2, out=128),
        Few(64, 128, 64, warps=4, stages=2, out=128),
    ),
    # reads and keeps twice as much; more keys than these go the general way
    "few_query": (
        Few(64, 32, 0, warps=4, stages=2),
        Few(64, 64, 0, warps=4, stages=2),
        Few(64, 128, 0, warps=4, stages=1),
    ),
}

# The newest version whose tiles these are; a version in between takes those of the newer.
_TRITON_3_6 = (3, 6)


def table(math: Math, hopper: bool, version: tuple[int, int]) -> Table:
    """Return the tiles of one kind of products on one kind of GPU.

    Args:
        math: How products are computed.
        hopper: Whether the GPU has compute capability 9.x.
        version: Of Triton, major and minor. Its versions give the same kernel different registers;
            tables were compiled with 3.6 and 3.9, and any version after 3.6 takes those of 3.9.

    Returns:
        For each kernel, its rows.
    """
    if math == "half":
        if not hopper:
            return _PORTABLE_16
        return _HOPPER_16_TRITON_3_6 if version <= _TRITON_3_6 else _HOPPER_16
    if math == "tf32":
        return _HOPPER_TF32 if hopper else _PORTABLE_TF32
    return _HOPPER_FLOAT32 if hopper else _PORTABLE_FLOAT32


def padded(channels: int) -> int:
    """Return the number of channels a kernel works on: the next power of two, at least 16."""
    return max(MIN_CHANNELS, 1 << (channels - 1).bit_length())


def choose(
    kernel: Kernel, math: Math, hopper: bool, version: tuple[int, int], e: int, ev: int
) -> Tile:
    """Return the tile of a call, its slices no wider than the padded channels.

    Args:
        kernel: Which kernel; ``query``, ``key`` and ``both`` name the roles of a backward pass's rows.
        math: How products are computed.
        hopper: Whether the GPU has compute capability 9.x.
        version: Of Triton, major and minor.
        e: Channels of query and key, 1 to 512.
        ev: Channels of value and output, 1 to 512.

    Returns:
        The tile.
    """
    return fit(kernel, table(math, hopper, version)[kernel], e, ev)


def fit(kernel: Kernel, rows: tuple[Row, ...], e: int, ev: int) -> Tile:
    """Return the first tile that is wide enough, its slices no wider than the padded channels."""
    wide_e, wide_ev = padded(e), padded(ev)
    tile = next(row.tile for row in rows if wide_e <= row.max_e and wide_ev <= row.max_ev)
    wide_out = wide_ev if kernel in ("forward", "value") else wide_e
    return dataclasses.replace(
        tile,
        slice_e=min(tile.slice_e, wide_e),
        slice_v=min(tile.slice_v, wide_ev),
        out=min(tile.out, wide_out),
        out_v=min(tile.out_v, wide_ev),
    )


def few_keys(
    tiles: tuple[Few, ...], math: Math, hopper: bool, e: int, ev: int, keys: int
) -> Few | None:
    """Return the tile that keeps all keys on chip, or ``None`` where there is none for the call."""
    if math != "half" or not hopper or max(padded(e), padded(ev)) > 256:
        return None
    return next((tile for tile in tiles if keys <= tile.keys0 + tile.keys1), None)


# Steps of a program's loop that its start and end cost, and what writing and adding parts costs.
_FIXED_STEPS = 2
_PART_STEPS = 4
MAX_SPLITS = 256


def splits(grid: tuple[int, int], steps: int, multiprocessors: int) -> int:
    """Return into how many parts a launch cuts its loops, to fill the GPU.

    The time of a launch is taken to be its waves times the steps of one program, and the number of
    parts with the least time is taken, the smallest of several. It depends on sizes alone, so a call
    is always cut, and added up, the same way.

    Args:
        grid: Programs without a cut.
        steps: Steps of one program's loop without a cut.
        multiprocessors: Of the GPU; one program runs on each.

    Returns:
        1 to ``steps``.
    """

    def time(parts: int) -> int:
        waves = -(-grid[0] * grid[1] * parts // multiprocessors)
        return waves * (-(-steps // parts) + _FIXED_STEPS + (_PART_STEPS if parts > 1 else 0))

    return min(range(1, min(steps, MAX_SPLITS) + 1), key=time)
