# SPDX-License-Identifier: MIT
"""Points carried between maps of different sizes."""

import pytest
import torch

from ocnet.modules.points import rescale_points


def test_corners_go_to_corners() -> None:
    corners = torch.tensor([[0, 0], [0, 1023], [511, 0], [511, 1023]])
    got = rescale_points("f", corners, (512, 1024), (65, 129))
    assert got.tolist() == [[0, 0], [0, 128], [64, 0], [64, 128]]


@pytest.mark.parametrize(("size", "new"), [(97, 48), (48, 97), (769, 97), (7, 7), (5, 1), (1, 5)])
def test_is_the_nearest_with_aligned_corners(size: int, new: int) -> None:
    points = torch.stack([torch.arange(size)] * 2, dim=1)
    got = rescale_points("f", points, (size, size), (new, new))
    exact = torch.linspace(0, new - 1, size, dtype=torch.float64) if size > 1 else torch.zeros(1)
    assert torch.equal(got[:, 0], got[:, 1])
    assert float((got[:, 0] - exact).abs().max()) <= 0.5 + 1e-9
    if size == new:
        assert torch.equal(got, points)


def test_a_batch_of_points() -> None:
    points = torch.tensor([[[1, 2]], [[3, 4]]], dtype=torch.int32)
    got = rescale_points("f", points, (9, 9), (5, 5))
    assert got.tolist() == [[[1, 1]], [[2, 2]]]
    assert got.dtype == torch.int64
    assert rescale_points("f", torch.zeros(0, 2, dtype=torch.int64), (9, 9), (5, 5)).shape == (0, 2)


@pytest.mark.parametrize(
    ("points", "error", "match"),
    [
        ([[1, 2]], TypeError, "f: points must be a tensor of integers, got list"),
        (torch.ones(1, 2), TypeError, "got torch.float32"),
        (torch.ones(1, 2, dtype=torch.bool), TypeError, "got torch.bool"),
        (torch.ones(2, dtype=torch.int64), ValueError, r"must have shape .* got \(2,\)"),
        (torch.ones(1, 3, dtype=torch.int64), ValueError, r"got \(1, 3\)"),
        (torch.tensor([[0, 0], [4, 7]]), ValueError, r"4 rows and 9 columns, got \(4, 7\)"),
        (torch.tensor([[0, -1]]), ValueError, r"got \(0, -1\)"),
    ],
    ids=["list", "float", "bool", "rank", "width", "outside", "negative"],
)
def test_bad_points_are_refused(points, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        rescale_points("f", points, (4, 9), (2, 2))
