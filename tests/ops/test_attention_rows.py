# SPDX-License-Identifier: MIT
"""Chosen rows equal the rows of the matrix, without the matrix."""

import pytest
import torch

from ocnet.ops import attention_rows


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


def test_no_tensor_is_as_large_as_the_matrix() -> None:
    maps = torch.randn(1, 4, 40, 40)
    with torch.profiler.profile(profile_memory=True) as profile:
        attention_rows(maps, maps, [(3, 4)])
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert 0 < allocated < 1600 * 1600
