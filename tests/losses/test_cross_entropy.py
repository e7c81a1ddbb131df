# SPDX-License-Identifier: MIT
"""Cross-entropy against the formula written out in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ocnet.losses import cross_entropy
from tests.losses.restated import EPS, resized


def formula(logits: Tensor, target: Tensor, ignore: int, weight: Tensor | None) -> Tensor:
    """Pixel by pixel, after resizing by the definition of aligned corners."""
    large = resized(logits, *target.shape[1:])
    total, norm = torch.zeros((), dtype=logits.dtype), 0.0
    for i, r, c in np.ndindex(*target.shape):
        y = int(target[i, r, c])
        if y == ignore:
            continue
        z = large[i, :, r, c]
        wy = 1.0 if weight is None else float(weight[y])
        total = total + wy * (torch.logsumexp(z, 0) - z[y])
        norm += wy
    return total / norm


def draw(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    logits = torch.randn(2, 4, 3, 5, dtype=dtype, requires_grad=True)
    target = torch.randint(0, 4, (2, 7, 9))
    target[torch.rand(target.shape) < 0.3] = 255
    return logits, target


@pytest.mark.parametrize("weighted", [False, True])
def test_is_the_weighted_mean_over_resized_logits(weighted: bool) -> None:
    logits, target = draw()
    weight = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=torch.float64) if weighted else None
    got = cross_entropy(logits, target, weight=weight)
    want = formula(logits, target, 255, weight)
    # About 100 terms; each passes through a bilinear mean and a log-sum-exp.
    torch.testing.assert_close(got, want, rtol=200 * EPS, atol=0)
    (grad,) = torch.autograd.grad(got, logits)
    (grad_want,) = torch.autograd.grad(want, logits)
    torch.testing.assert_close(
        grad, grad_want, rtol=0, atol=200 * EPS * float(grad_want.abs().max())
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_over_all_pixels_it_is_the_mean_of_the_map(weighted: bool) -> None:
    logits, target = draw()
    weight = torch.tensor([0.5, 1.0, 2.0, 0.25], dtype=torch.float64) if weighted else None
    got = cross_entropy(logits, target, weight=weight, over_all=True)
    share = torch.ones(4, dtype=torch.float64) if weight is None else weight
    valid = target != 255
    # The weighted mean, times the sum of weights, over all pixels.
    want = formula(logits, target, 255, weight) * share[target[valid]].sum() / target.numel()
    torch.testing.assert_close(got, want)
    assert valid.sum() < target.numel()


def test_labels_of_every_integer_type() -> None:
    logits, target = draw()
    want = cross_entropy(logits, target)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(cross_entropy(logits, target.to(dtype)), want)


def test_another_ignored_label() -> None:
    logits, target = draw()
    want = cross_entropy(logits, target)
    assert torch.equal(
        cross_entropy(logits, target.where(target != 255, -1), ignore_index=-1), want
    )
    zero = target.where(target != 0, 255)
    assert torch.equal(
        cross_entropy(logits, target.where(target != 255, 0), ignore_index=0),
        cross_entropy(logits, zero),
    )


@pytest.mark.parametrize("weight", [None, torch.ones(4), torch.zeros(4)], ids=["none", "ones", "0"])
def test_nothing_to_learn_from_is_zero(weight: Tensor | None) -> None:
    logits = torch.randn(2, 4, 3, 5, requires_grad=True)
    label = 1 if weight is not None and not bool(weight.any()) else 255
    loss = cross_entropy(logits, torch.full((2, 7, 9), label), weight=weight)
    assert float(loss.detach()) == 0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_logits_are_summed_wide(dtype: torch.dtype) -> None:
    logits, target = draw(torch.float32)
    narrow = logits.detach().to(dtype).requires_grad_()
    loss = cross_entropy(narrow, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, cross_entropy(narrow.detach().float(), target))
    loss.backward()
    assert narrow.grad.dtype == dtype


@pytest.mark.parametrize("value", [4, 254, -1])
def test_a_label_outside_the_range_is_named(value: int) -> None:
    logits, target = draw()
    target[1, 2, 3] = value
    with pytest.raises(
        ValueError, match=rf"target must hold labels in \[0, 4\) or 255, got {value}"
    ):
        cross_entropy(logits, target)


def test_an_unsigned_255_is_not_minus_one() -> None:
    logits, target = draw()
    with pytest.raises(ValueError, match="or -1, got 255"):
        cross_entropy(logits, target.to(torch.uint8), ignore_index=-1)


@pytest.mark.parametrize(
    ("logits", "target", "weight", "error", "match"),
    [
        ((2, 4, 3), (2, 7, 9), None, ValueError, r"logits must have shape \(N, K, h, w\)"),
        ((2, 4, 3, 3), (3, 7, 9), None, ValueError, r"target must have shape \(2, H, W\)"),
        ((2, 4, 3, 3), (2, 1, 7, 9), None, ValueError, r"got \(2, 1, 7, 9\)"),
        ((2, 4, 3, 3), (2, 7, 9), 5, ValueError, r"weight must have shape \(4,\), got \(5,\)"),
    ],
    ids=["rank", "batch", "target", "weight"],
)
def test_other_shapes_are_refused(logits, target, weight, error, match: str) -> None:
    with pytest.raises(error, match=match):
        cross_entropy(
            torch.zeros(logits),
            torch.zeros(target, dtype=torch.int64),
            weight=None if weight is None else torch.ones(weight),
        )


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match=r"logits must be floating, got torch\.int64"):
        cross_entropy(torch.zeros(1, 2, 3, 3).long(), torch.zeros(1, 3, 3).long())
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(TypeError, match=f"target must be integer, got {dtype}"):
            cross_entropy(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=dtype))


def test_compiles_in_one_graph() -> None:
    logits, target = draw()
    compiled = torch.compile(cross_entropy, fullgraph=True, backend="aot_eager")
    got = compiled(logits, target)
    torch.testing.assert_close(got, cross_entropy(logits, target), rtol=8 * EPS, atol=0)
    (grad,) = torch.autograd.grad(got, logits)
    assert bool(F.normalize(grad.flatten(), dim=0).isfinite().all())
