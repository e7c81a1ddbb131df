# SPDX-License-Identifier: MIT
"""Edges of label maps and their loss against loops over pixels."""

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from ocnet.losses import edge_labels, edge_loss
from tests.losses.restated import EPS, resized

# Row and column of the pixel that is marked where it differs from the other, seen from the upper left of the two.
PAIRS = [((1, 0), (0, 0)), ((0, 0), (0, 1)), ((0, 0), (1, 1)), ((0, 1), (1, 0))]


def edges(label: list[list[int]], ignore: int = 255) -> list[list[int]]:
    rows, columns = len(label), len(label[0])
    marked = set()
    for r in range(rows):
        for c in range(columns):
            for (a, b), (d, e) in PAIRS:
                if max(r + a, r + d) == rows or max(c + b, c + e) == columns:
                    continue
                one, other = label[r + a][c + b], label[r + d][c + e]
                if one != other and ignore not in (one, other):
                    marked.add((r + a, c + b))
    near = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    return [
        [int(any((r + a, c + b) in marked for a, b in near)) for c in range(columns)]
        for r in range(rows)
    ]


@pytest.mark.parametrize("size", [(9, 14), (1, 8), (8, 1), (1, 1), (2, 2)])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_edges_are_those_of_loops(size: tuple[int, int], classes: int) -> None:
    for ignored in (0.0, 0.3, 1.0):
        # Large regions, so that both values occur.
        target = torch.randint(0, classes, (3, *size)).repeat_interleave(3, 1)
        target = target.repeat_interleave(4, 2)
        target[torch.rand(target.shape) < ignored] = 255
        got = edge_labels(target)
        assert got.dtype == torch.int64
        assert got.tolist() == [edges(label) for label in target.tolist()]


def test_a_straight_edge_is_two_pixels_wide_on_either_side() -> None:
    target = torch.zeros(1, 10, 10, dtype=torch.uint8)
    target[:, :, 5:] = 3
    wide = torch.zeros(1, 10, 10, dtype=torch.int64)
    wide[:, :, 3:7] = 1
    assert torch.equal(edge_labels(target), wide)
    assert torch.equal(edge_labels(target.mT), wide.mT)
    assert not bool(edge_labels(target, ignore_index=3).any())


def test_an_unsigned_255_is_not_minus_one() -> None:
    target = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    assert bool(edge_labels(target, ignore_index=-1).all())
    assert not bool(edge_labels(target).any())


def test_one_pixel_marks_its_published_neighbours() -> None:
    target = torch.zeros(1, 5, 5, dtype=torch.int64)
    target[0, 2, 2] = 1
    marks = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 0]], dtype=np.float32)
    want = cv2.dilate(np.pad(marks, 1), np.ones((3, 3), dtype=np.uint8))
    assert edge_labels(target)[0].tolist() == want.astype(int).tolist()


def halves(logits: Tensor, target: Tensor) -> Tensor:
    """Half the mean loss of edges and half that of the rest."""
    log = logits.log_softmax(1)
    return -(log[:, 1][target == 1].mean() + log[:, 0][target == 0].mean()) / 2


def draw() -> tuple[Tensor, Tensor]:
    logits = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    target = (torch.rand(2, 7, 9) < 0.2).long()
    target[torch.rand(target.shape) < 0.2] = 255
    return logits, target


def test_edges_and_the_rest_weigh_the_same() -> None:
    logits, target = draw()
    got, want = edge_loss(logits, target), halves(resized(logits, 7, 9), target)
    torch.testing.assert_close(got, want, rtol=200 * EPS, atol=0)
    grads = [torch.autograd.grad(loss, logits)[0] for loss in (got, want)]
    torch.testing.assert_close(*grads, rtol=0, atol=200 * EPS)


def test_weights_are_the_shares_of_the_other_class() -> None:
    logits, target = draw()
    large = resized(logits, 7, 9).detach().numpy()
    total = norm = 0.0
    positive, negative = int((target == 1).sum()), int((target == 0).sum())
    shares = (positive / (positive + negative), negative / (positive + negative))
    for i, r, c in np.ndindex(*target.shape):
        y = int(target[i, r, c])
        if y != 255:
            z = large[i, :, r, c]
            total += shares[y] * float(np.log(np.exp(z).sum()) - z[y])
            norm += shares[y]
    assert float(edge_loss(logits.detach(), target)) == pytest.approx(total / norm, rel=200 * EPS)


@pytest.mark.parametrize("label", [0, 1, 255])
def test_only_one_class_is_zero(label: int) -> None:
    logits = torch.randn(2, 2, 3, 5, requires_grad=True)
    target = torch.full((2, 7, 9), label)
    target[0, 0, 0] = 255
    loss = edge_loss(logits, target)
    assert float(loss.detach()) == 0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_logits_are_summed_wide(dtype: torch.dtype) -> None:
    logits, target = draw()
    narrow = logits.detach().to(dtype)
    loss = edge_loss(narrow, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, edge_loss(narrow.float(), target))


def test_compiles_in_one_graph() -> None:
    logits, _ = draw()
    target = torch.randint(0, 3, (2, 3, 3)).repeat_interleave(3, 1).repeat_interleave(3, 2)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return edge_loss(x, edge_labels(y))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got, want = compiled(logits, target), loss(logits, target)
    assert float(want.detach()) > 0
    torch.testing.assert_close(got, want, rtol=8 * EPS, atol=0)


def test_other_arguments_are_refused() -> None:
    logits, target = draw()
    with pytest.raises(ValueError, match=r"edge_loss: logits must have shape \(N, 2, h, w\)"):
        edge_loss(torch.zeros(2, 3, 4, 5), target)
    with pytest.raises(ValueError, match="edge_loss: ignore_index must not be 0 or 1, got 1"):
        edge_loss(logits, target, ignore_index=1)
    with pytest.raises(ValueError, match=r"edge_loss: target must hold labels in \[0, 2\) or 255"):
        edge_loss(logits, target + 1)
    with pytest.raises(TypeError, match=r"edge_labels: target must be integer, got torch\.bool"):
        edge_labels(target.bool())
    with pytest.raises(ValueError, match=r"edge_labels: target must have shape \(N, H, W\)"):
        edge_labels(target[0])
