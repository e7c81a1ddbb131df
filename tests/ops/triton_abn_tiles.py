# SPDX-License-Identifier: MIT
"""Tiles of in-place ABN's Triton kernels that cut small maps as often as others cut large ones."""

import dataclasses

import pytest

from ocnet.ops.inplace_abn import configs, triton_backend

SMALL = configs.Tile(numbers=64, width=16, channels=8, warps=1, programs=6)
# Maps of several parts with several tiles each: planes that are wide, odd, narrow or whole; rows of
# channels that are whole groups of 16 bytes, or not.
SHAPES = [(6, 2, 49), (3, 1, 130), (18, 2, 5), (3, 2, 96), (130, 8), (50, 19), (50, 16)]


def use_small_tiles(patch: pytest.MonkeyPatch) -> None:
    """Cut small maps into many tiles, parts, and rounds of combining."""
    tiles = dict.fromkeys(configs.TABLES[4], SMALL)
    tiles["apply"] = dataclasses.replace(SMALL, programs=12)
    patch.setattr(configs, "TABLES", {2: tiles, 4: tiles})
    patch.setattr(configs, "MOST_ENDS", 2)
    patch.setattr(configs, "OWN_PARTS_PLANES", 4)
    patch.setattr(configs, "OWN_PARTS_ROWS", 4)
    patch.setitem(triton_backend._COMBINE, "BP", 4)
