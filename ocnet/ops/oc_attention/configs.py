# SPDX-License-Identifier: MIT
"""Frozen tile sizes of the Triton kernels; nothing is timed or tuned at run time.

A tile is chosen by kernel, element size, kind of GPU and the channels, padded to powers of two.
The rows of a table are tried from the top, and the first that is wide enough for both channel
counts is taken, so every legal call finds one. ``tests/ops/test_triton_compile.py`` compiles the
rows and asserts that they fit shared memory; what "spills" below was seen there.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

Kernel = Literal["forward", "value", "feature", "feature_shared"]

# Opt-in shared memory of one block, bytes. Hopper's rows may use all of it. The others must fit the
# smallest among GPUs of compute capability 8.0 and later (8.6, 8.9 and 12.0; 8.0 has 166912), so
# that no GPU is left without a tile.
SHARED_MEMORY_HOPPER = 232448
SHARED_MEMORY_PORTABLE = 101376

# Tensor cores multiply at least 16 channels at a time.
MIN_CHANNELS = 16
MAX_CHANNELS = 512

# Rows and channels that the delta kernel reads at a time; it only streams, so modest tiles will do.
DELTA_ROWS = 32
DELTA_CHANNELS = 64


@dataclass(frozen=True)
class Tile:
    """How one program of a kernel cuts its work.

    Attributes:
        rows: Tokens that the program keeps.
        cols: Tokens that pass by in one step.
        slice_e: Query and key channels multiplied at a time. Fewer than there are: the kept tile is
            read again in every step instead of staying on chip, which is what makes wide maps fit.
        slice_v: The same for value channels, which the ``feature`` kernels multiply.
        out: Output channels of one program; further ones go to further programs, which compute the
            scores again.
        warps: Warps of one program.
        stages: Depth of the load pipeline.
    """

    rows: int
    cols: int
    slice_e: int
    slice_v: int
    out: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Row:
    """A tile and the padded channel counts up to which it is taken."""

    max_e: int
    max_ev: int
    tile: Tile


# Two-byte elements, compute capability 9.x: 128 rows feed two warp groups. Everything is as large
# as the registers (accumulator: rows x out, float32) and shared memory (tiles x stages) allow.
_HOPPER_16: dict[Kernel, tuple[Row, ...]] = {
    "forward": (
        # small tiles of channels: widest columns, deepest pipeline
        Row(64, 64, Tile(128, 128, 64, 64, 64, warps=8, stages=3)),
        # a third stage would not fit
        Row(128, 128, Tile(128, 128, 128, 128, 128, warps=8, stages=2)),
        # 128 columns spill
        Row(128, 256, Tile(128, 64, 128, 256, 256, warps=8, stages=3)),
        # the main job's size: 196608 B, no spill
        Row(256, 256, Tile(128, 64, 256, 256, 256, warps=8, stages=2)),
        # 64 rows keep all 512 output channels in registers, so scores are computed once
        Row(256, 512, Tile(64, 64, 256, 512, 512, warps=8, stages=2)),
        # 128 slices spill beside 256 output channels
        Row(512, 512, Tile(128, 64, 64, 256, 256, warps=8, stages=2)),
    ),
    "value": (
        Row(64, 64, Tile(128, 128, 64, 64, 64, warps=8, stages=3)),
        Row(128, 128, Tile(128, 128, 128, 128, 128, warps=8, stages=2)),
        Row(128, 256, Tile(128, 64, 128, 256, 256, warps=8, stages=3)),
        Row(256, 256, Tile(128, 64, 256, 256, 256, warps=8, stages=2)),
        # 64 columns of 256 channels spill beside 512 output channels
        Row(256, 512, Tile(64, 32, 256, 512, 512, warps=8, stages=2)),
        # keeps 512 output channels; slices free the registers of the kept tile
        Row(512, 512, Tile(64, 64, 64, 512, 512, warps=8, stages=2)),
    ),
    "feature": (
        Row(64, 64, Tile(128, 128, 64, 64, 64, warps=8, stages=2)),
        # 128 columns do not fit beside two kept tiles
        Row(128, 128, Tile(128, 64, 128, 128, 128, warps=8, stages=2)),
        Row(128, 256, Tile(128, 32, 128, 256, 128, warps=8, stages=2)),
        # 64 columns spill even with one stage
        Row(256, 256, Tile(128, 32, 256, 256, 256, warps=8, stages=2)),
        # two kept tiles of 64 rows no longer fit whole: the wider one is sliced
        Row(256, 512, Tile(64, 64, 256, 64, 256, warps=8, stages=2)),
        Row(512, 512, Tile(64, 64, 128, 128, 256, warps=8, stages=2)),
    ),
    "feature_shared": (
        # three kept tiles and three that pass by: one size smaller than with one role
        Row(64, 64, Tile(128, 64, 64, 64, 64, warps=8, stages=2)),
        Row(128, 128, Tile(128, 64, 128, 128, 128, warps=8, stages=2)),
        # 64 columns spill; four warps because 64 rows are one warp group's height
        Row(128, 256, Tile(64, 32, 128, 256, 128, warps=4, stages=2)),
        # four warps spill
        Row(256, 256, Tile(64, 32, 256, 256, 256, warps=8, stages=2)),
        # whole or half value tiles spill
        Row(256, 512, Tile(64, 32, 256, 64, 256, warps=8, stages=2)),
        Row(512, 512, Tile(64, 32, 128, 128, 256, warps=8, stages=2)),
    ),
}

# Two-byte elements, every other GPU: kept tiles live in registers there, and 99 KB must do.
_PORTABLE_16: dict[Kernel, tuple[Row, ...]] = {
    "forward": (
        Row(64, 64, Tile(128, 64, 64, 64, 64, warps=4, stages=3)),
        Row(128, 128, Tile(128, 64, 128, 128, 128, warps=8, stages=2)),
        # 128 rows spill
        Row(128, 256, Tile(64, 64, 128, 256, 256, warps=8, stages=2)),
        # 64 columns need 106496 B
        Row(256, 256, Tile(64, 32, 256, 256, 256, warps=8, stages=2)),
        # sliced reads: 512 kept channels do not fit in registers
        Row(512, 512, Tile(64, 64, 64, 256, 256, warps=8, stages=2)),
    ),
    "value": (
        Row(64, 64, Tile(128, 64, 64, 64, 64, warps=4, stages=2)),
        Row(128, 128, Tile(128, 64, 128, 128, 128, warps=8, stages=2)),
        Row(128, 256, Tile(64, 64, 128, 256, 256, warps=8, stages=2)),
        Row(256, 256, Tile(64, 32, 256, 256, 256, warps=8, stages=2)),
        Row(512, 512, Tile(64, 64, 128, 256, 256, warps=8, stages=2)),
    ),
    "feature": (
        Row(64, 64, Tile(128, 64, 64, 64, 64, warps=8, stages=2)),
        Row(128, 128, Tile(64, 64, 128, 128, 128, warps=8, stages=2)),
        Row(128, 256, Tile(64, 32, 128, 256, 128, warps=8, stages=2)),
        # two kept tiles of 256 channels leave no room for 64 columns: the value side is sliced
        Row(256, 256, Tile(64, 32, 256, 128, 256, warps=8, stages=2)),
        # 128 slices spill
        Row(512, 512, Tile(64, 32, 64, 64, 256, warps=8, stages=2)),
    ),
    "feature_shared": (
        # every tile spills here; this one least, 16 B
        Row(64, 64, Tile(64, 64, 64, 64, 64, warps=8, stages=2)),
        # 64 columns need 107008 B
        Row(128, 128, Tile(64, 32, 128, 128, 128, warps=4, stages=2)),
        # with slices of 128, 128 value channels would be kept whole and need 102656 B
        Row(256, 256, Tile(64, 32, 256, 64, 256, warps=8, stages=2)),
        Row(512, 512, Tile(64, 32, 64, 64, 256, warps=8, stages=2)),
    ),
}

# Four-byte elements, every GPU: IEEE products are unrolled over their slice on the CUDA cores, so
# slices are short to stay within registers; TF32 products take the same tiles.
_FLOAT32: dict[Kernel, tuple[Row, ...]] = {
    "forward": (Row(512, 512, Tile(64, 32, 32, 32, 256, warps=8, stages=2)),),
    "value": (Row(512, 512, Tile(64, 32, 32, 32, 256, warps=8, stages=2)),),
    "feature": (Row(512, 512, Tile(64, 32, 32, 32, 256, warps=8, stages=2)),),
    "feature_shared": (Row(512, 512, Tile(64, 32, 32, 32, 256, warps=8, stages=2)),),
}

TABLES: dict[tuple[int, bool], dict[Kernel, tuple[Row, ...]]] = {
    (2, True): _HOPPER_16,
    (2, False): _PORTABLE_16,
    (4, True): _FLOAT32,
    (4, False): _FLOAT32,
}


def padded(channels: int) -> int:
    """Return the number of channels a kernel works on: the next power of two, at least 16."""
    return max(MIN_CHANNELS, 1 << (channels - 1).bit_length())


def choose(kernel: Kernel, itemsize: int, hopper: bool, e: int, ev: int) -> Tile:
    """Return the tile of a call, its slices no wider than the padded channels.

    Args:
        kernel: Which kernel; ``feature_shared`` is the ``feature`` kernel with both roles.
        itemsize: Bytes of one element, 2 or 4.
        hopper: Whether the GPU has compute capability 9.x.
        e: Channels of query and key, 1 to 512.
        ev: Channels of value and output, 1 to 512.

    Returns:
        The tile.
    """
    wide_e, wide_ev = padded(e), padded(ev)
    rows = TABLES[itemsize, hopper][kernel]
    tile = next(row.tile for row in rows if wide_e <= row.max_e and wide_ev <= row.max_ev)
    wide_out = wide_ev if kernel in ("forward", "value") else wide_e
    return dataclasses.replace(
        tile,
        slice_e=min(tile.slice_e, wide_e),
        slice_v=min(tile.slice_v, wide_ev),
        out=min(tile.out, wide_out),
    )
