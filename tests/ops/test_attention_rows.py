# SPDX-License-Identifier: MIT
"""Chosen rows equal the rows of the matrix, without the matrix."""

from typing import Any

import pytest
import torch

from ocnet.ops import Blocks, Grid, Strided, attention_rows


def _matrix(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.softmax(scale * query.flatten(2).mT @ key.flatten(2), -1)


@pytest.mark.parametrize("per_image", [False, True])
def test_equal_to_the_matrix(per_image: bool) -> None:
    query, key = torch.randn(2, 6, 4, 5), torch.randn(2, 6, 3, 7)
    points = torch.tensor([[0, 0], [3, 4], [2, 1]])
    if per_image:
        points = torch.stack([points, points.flip(0)])
    rows = attention_rows(query, key, points)
    assert rows.shape == (2, 3, 3, 7)
    full = _matrix(query, key, 6**-0.5).reshape(2, 4, 5, 3, 7)
    for n in range(2):
        for p in range(3):
            y, x = (points[n] if per_image else points)[p].tolist()
            torch.testing.assert_close(rows[n, p], full[n, y, x])


PARTITIONS = [
    Grid(1),
    Grid(2),
    Grid(3),
    Grid(6),
    Grid(2, 9),
    Blocks(4, 3),
    Strided(3, 4),
    Strided(8, 2),
]


def _members(size: int, position: int, partition: Any, parts: int) -> slice:
    """Slice the positions of one axis that are in the group of one of them, said in another way."""
    if isinstance(partition, Strided):
        return slice(position % parts, size, parts)
    if isinstance(partition, Blocks):
        start = position - position % parts
        return slice(start, start + parts)
    step = size // parts
    if step == 0:
        return slice(0, size)
    cell = min(position // step, parts - 1)
    return slice(cell * step, size if cell == parts - 1 else (cell + 1) * step)


@pytest.mark.parametrize("partition", PARTITIONS, ids=str)
def test_rows_within_a_group_are_those_of_its_slice(partition: Any) -> None:
    h, w = 7, 11
    query, key = (torch.randn(2, 6, h, w, dtype=torch.float64) for _ in range(2))
    points = torch.cartesian_prod(torch.arange(h), torch.arange(w))
    rows = attention_rows(query, key, points, partition=partition)
    assert rows.shape == (2, h * w, h, w)
    if isinstance(partition, Grid):
        parts = partition.rows, partition.cols or partition.rows
    else:
        parts = partition.h, partition.w
    want = torch.zeros_like(rows)
    for p, (y, x) in enumerate(points.tolist()):
        here = _members(h, y, partition, parts[0]), _members(w, x, partition, parts[1])
        keys = key[(..., *here)]
        scores = 6**-0.5 * torch.einsum("ne,nehw->nhw", query[:, :, y, x], keys)
        weights = torch.softmax(scores.flatten(1), -1).reshape(scores.shape)
        want[(slice(None), p, *here)] = weights
    # Sums of 6 products and of 77 weights, at most 1 each.
    bound = 2 * (6 + h * w) * torch.finfo(torch.float64).eps
    torch.testing.assert_close(rows, want, rtol=0, atol=bound)
    assert torch.equal(rows == 0, want == 0)


def test_numbers_of_other_groups_are_not_read() -> None:
    key = torch.randn(1, 4, 6, 6)
    points = [(0, 0), (2, 2)]
    want = attention_rows(key, key, points, partition=Grid(2))
    poisoned = key.clone()
    poisoned[..., 3:, :], poisoned[..., :3, 3:] = torch.nan, torch.inf
    assert torch.equal(attention_rows(poisoned, poisoned, points, partition=Grid(2)), want)


def test_what_is_no_partition_is_refused() -> None:
    query, key = torch.randn(1, 4, 6, 6), torch.randn(1, 4, 6, 5)
    with pytest.raises(
        ValueError,
        match=r"attention_rows: key must have the rows and columns of query with a partition, 6 x 6, "
        r"got \(1, 4, 6, 5\)",
    ):
        attention_rows(query, key, [(0, 0)], partition=Grid(2))
    with pytest.raises(
        TypeError, match="attention_rows: partition must be one of Grid, Blocks, Strided, got int"
    ):
        attention_rows(query, query, [(0, 0)], partition=2)


def test_half_precision_scores_are_float32() -> None:
    query = (torch.randn(1, 64, 4, 4) * 40).half()
    rows = attention_rows(query, query, [(1, 1)], scale=0.1)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.sum((2, 3)), torch.ones(1, 1))


def test_gradients_flow() -> None:
    query = torch.randn(1, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    key = torch.randn(1, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda q, k: attention_rows(q, k, [(0, 1), (2, 2)]), (query, key)
    )
    same = torch.randn(1, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda q, k: attention_rows(q, k, [(0, 1), (2, 2)], partition=Strided(2, 2)), (query, same)
    )


@pytest.mark.parametrize("partition", [None, Strided(2, 1)], ids=str)
def test_no_tensor_is_as_large_as_the_matrix(partition: Strided | None) -> None:
    maps = torch.randn(1, 4, 40, 40)
    with torch.profiler.profile(profile_memory=True) as profile:
        attention_rows(maps, maps, [(3, 4)], partition=partition)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert 0 < allocated < 1600 * 1600
