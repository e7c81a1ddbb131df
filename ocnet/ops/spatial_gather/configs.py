# SPDX-License-Identifier: MIT
"""Frozen tile sizes of the Triton kernels; nothing is timed or tuned at run time.

A tile is chosen by kernel, element size and the number of regions, padded to a power of two. There
is one table for all GPUs: at these sizes bytes set the time, not products, and every tile fits the
smallest shared memory among GPUs of compute capability 8.0 and later.
``tests/ops/test_spatial_gather_compile.py`` compiles the rows and asserts that nothing spills.
"""

from dataclasses import dataclass
from typing import Literal

Kernel = Literal["forward", "forward_apart", "logits", "features"]

# Opt-in shared memory of one block in bytes on compute capability 8.6, 8.9 and 12.0.
SHARED_MEMORY = 101376
# Tensor cores multiply at least 16 of anything at a time.
LEAST = 16

# Programs of a forward launch, at most: two for each multiprocessor of the largest GPU that it was
# made for. A number of its own and not the device's, so that the same call is cut into the same
# parts, and sums in the same order, everywhere.
PROGRAMS = 264
# Positions of a part, at least: then what is read of the features outweighs what is written of the
# sums.
LEAST_PART = 256
# Parts at most; the combining kernel holds one number of each.
MOST_PARTS = 128
# Parts and channels that the combining kernel adds at a time: it only streams.
COMBINE_PARTS = 16
COMBINE_CHANNELS = 128
# Regions and channels that the delta kernel reads at a time.
DELTA_REGIONS = 16
DELTA_CHANNELS = 128


@dataclass(frozen=True)
class Tile:
    """How one program of a kernel cuts its work.

    Attributes:
        positions: Positions of a tile.
        regions: Regions of a tile.
        channels: Channels of a tile.
        warps: Warps of one program.
        stages: Depth of the load pipeline.
    """

    positions: int
    regions: int
    channels: int
    warps: int
    stages: int


# Two-byte elements, by the padded number of regions up to which a tile is taken.
_16: dict[Kernel, tuple[Tile, ...]] = {
    # All channels that fit beside each other: each slice of them computes the weights again.
    "forward": (
        # 64 positions spill
        Tile(positions=32, regions=16, channels=256, warps=4, stages=2),
        Tile(positions=64, regions=32, channels=256, warps=4, stages=2),
        Tile(positions=64, regions=64, channels=256, warps=8, stages=2),
        # 256 channels spill
        Tile(positions=64, regions=128, channels=128, warps=8, stages=2),
    ),
    # Features whose channels do not lie side by side (NCHW): with an odd number of positions every
    # number has an address of its own, in registers, and wider tiles spill.
    "forward_apart": (
        Tile(positions=32, regions=16, channels=128, warps=4, stages=2),
        Tile(positions=32, regions=32, channels=128, warps=4, stages=2),
        Tile(positions=32, regions=64, channels=128, warps=8, stages=2),
        Tile(positions=32, regions=128, channels=64, warps=8, stages=2),
    ),
    # The sums are positions by regions; channels pass by, so a pipeline pays.
    "logits": (
        Tile(positions=128, regions=16, channels=64, warps=4, stages=3),
        Tile(positions=128, regions=32, channels=64, warps=4, stages=3),
        # four warps spill
        Tile(positions=128, regions=64, channels=64, warps=8, stages=3),
        # 128 positions spill
        Tile(positions=64, regions=128, channels=64, warps=8, stages=3),
    ),
    # The sums are positions by channels; regions pass by, and are few.
    "features": (
        Tile(positions=64, regions=16, channels=128, warps=4, stages=2),
        Tile(positions=64, regions=32, channels=128, warps=4, stages=2),
    ),
}

# Four-byte elements: IEEE products are unrolled over the tile on the CUDA cores, so tiles are small
# to stay within registers; TF32 products take the same ones.
_FLOAT32_FORWARD = (
    # four warps spill, and so do two stages
    Tile(positions=32, regions=16, channels=128, warps=8, stages=1),
    # 128 channels spill
    Tile(positions=32, regions=32, channels=64, warps=4, stages=1),
)
_32: dict[Kernel, tuple[Tile, ...]] = {
    "forward": _FLOAT32_FORWARD,
    "forward_apart": _FLOAT32_FORWARD,
    "logits": (
        Tile(positions=64, regions=16, channels=32, warps=4, stages=2),
        # four warps spill
        Tile(positions=64, regions=32, channels=32, warps=8, stages=2),
        Tile(positions=64, regions=64, channels=32, warps=8, stages=2),
    ),
    "features": (
        Tile(positions=32, regions=16, channels=64, warps=4, stages=2),
        # 64 positions spill
        Tile(positions=32, regions=32, channels=64, warps=4, stages=1),
    ),
}

TABLES: dict[int, dict[Kernel, tuple[Tile, ...]]] = {2: _16, 4: _32}


def padded(size: int) -> int:
    """Return the next power of two, at least 16."""
    return max(LEAST, 1 << (size - 1).bit_length())


def choose(kernel: Kernel, itemsize: int, regions: int) -> Tile:
    """Return the tile of a call: the first that holds all regions, else the last.

    Args:
        kernel: Which kernel.
        itemsize: Bytes of one element, 2 or 4.
        regions: Regions, 1 to 512.

    Returns:
        The tile.
    """
    rows = TABLES[itemsize][kernel]
    return next((tile for tile in rows if tile.regions >= padded(regions)), rows[-1])


def parts(n: int, l: int, regions: int, channels: int, tile: Tile) -> tuple[int, int]:
    """Return into how many parts the positions are cut, and how many positions a part has.

    Args:
        n: Images.
        l: Positions of an image.
        regions: Regions.
        channels: Channels.
        tile: The forward kernel's.

    Returns:
        The parts, and the positions of all but the last of them: a multiple of the tile's.
    """
    slices = -(-regions // tile.regions) * -(-channels // tile.channels)
    wanted = min(-(-PROGRAMS // (n * slices)), -(-l // LEAST_PART), MOST_PARTS)
    length = -(-l // (wanted * tile.positions)) * tile.positions
    return -(-l // length), length
