# SPDX-License-Identifier: MIT
"""Cutting an axis: places, coverage and weights."""

import numpy as np
import pytest
import torch

from ocnet.evaluation import InferenceOptions
from ocnet.evaluation.options import Blend, Border
from ocnet.evaluation.tiles import starts, strips


@pytest.mark.parametrize(
    ("length", "tile", "stride", "shift", "expected"),
    [
        (1280, 1024, 1024, True, [0, 256]),  # OCNet at scale 1.25: rows, then columns
        (2560, 2048, 2048, True, [0, 512]),
        (1024, 1024, 1024, True, [0]),
        (700, 520, 346, False, [0, 346]),  # HRNet on ADE20K
        (10, 4, 4, True, [0, 4, 6]),
        (10, 4, 4, False, [0, 4, 8]),
        (8, 4, 4, False, [0, 4]),
        (3, 4, 4, True, [0]),
        (3, 4, 4, False, [0]),
        (5, 4, 1, True, [0, 1]),
    ],
)
def test_places_of_tiles(
    length: int, tile: int, stride: int, shift: bool, expected: list[int]
) -> None:
    assert starts(length, tile, stride, shift) == expected


@pytest.mark.parametrize(
    ("tile", "overlap", "second"),
    [
        (1024, 0.0, 1024),
        (9, 2 / 3, 3),
        (600, 1 / 3, 400),
        (520, 1 / 3, 346),
        (8, 0.5, 4),
        (20, 0.9, 2),  # 1.9999999999999996 in double precision
        (2, 0.9, 1),
    ],
)
def test_overlap_is_a_part_of_the_tile(tile: int, overlap: float, second: int) -> None:
    options = InferenceOptions(overlap=overlap)
    assert strips(4 * tile, 4 * tile, tile, options)[1].start == second


@pytest.mark.parametrize("border", ["shift", "pad"])
@pytest.mark.parametrize("blend", ["count", "gaussian"])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 2 / 3])
@pytest.mark.parametrize(
    ("length", "result", "tile"),
    [
        (23, 23, 7),
        (23, 23, 9),
        (23, 31, 7),
        (31, 23, 7),
        (40, 9, 3),
        (9, 40, 3),
        (5, 5, 8),
        (5, 9, 8),
        (1, 1, 4),
        (1, 6, 4),
        (6, 1, 4),
        (17, 17, 1),
    ],
)
def test_every_pixel_is_covered_with_weights_that_sum_to_one(
    border: Border, blend: Blend, overlap: float, length: int, result: int, tile: int
) -> None:
    options = InferenceOptions(border=border, blend=blend, overlap=overlap)
    covered = np.zeros(length, dtype=int)
    weights = torch.zeros(result, dtype=torch.float64)
    for strip in strips(length, result, tile, options):
        assert 0 < strip.stop - strip.start <= tile
        covered[strip.start : strip.stop] += 1
        ones = torch.ones(1, strip.stop - strip.start, dtype=torch.float64)
        weights[strip.target] += strip.spread(ones, -1)[0]
    assert (covered > 0).all()
    # Rounding of a few sums in double precision.
    assert (weights - 1).abs().max() < 1e-13


def test_a_tile_alone_has_all_the_weight() -> None:
    first, second = strips(12, 12, 8, InferenceOptions(blend="gaussian"))
    assert first.low_weight[:4].tolist() == [1.0] * 4
    assert second.low_weight[4:].tolist() == [1.0] * 4
    assert 0 < float(second.low_weight[0]) < float(second.low_weight[3]) < 1


def test_a_bell_has_a_deviation_of_an_eighth_of_the_tile() -> None:
    first, second = strips(24, 24, 16, InferenceOptions(blend="gaussian", overlap=0.5))
    # Pixel 9 is 1.5 from the middle of the first and 6.5 from that of the second; the deviation is 2.
    bells = np.exp(-(np.array([1.5, 6.5]) ** 2) / 8)
    assert float(first.low_weight[9]) == pytest.approx(bells[0] / bells.sum(), rel=1e-14)
    assert float(second.low_weight[1]) == pytest.approx(bells[1] / bells.sum(), rel=1e-14)
