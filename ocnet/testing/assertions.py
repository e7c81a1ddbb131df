# SPDX-License-Identifier: MIT
"""Checks whose tolerance is derived from arithmetic, not tuned."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def rounding_floor(actual: Tensor, oracle: Tensor, magnitude: Tensor, terms: int) -> Tensor:
    """Return, element by element, the error that any correct implementation may have.

    Two roundings of the result in its dtype, and sums of ``terms`` products in the accumulation dtype
    (float32, or float64 for float64), whose errors grow as the square root of their number.
    """
    wide = torch.float64 if actual.dtype == torch.float64 else torch.float32
    own = 2 * torch.finfo(actual.dtype).eps * oracle.abs()
    return own + 8 * torch.finfo(wide).eps * math.sqrt(terms) * magnitude


def assert_as_accurate(
    name: str,
    actual: Tensor,
    oracle: Tensor,
    eager: Sequence[Tensor],
    magnitude: Tensor,
    terms: int,
) -> None:
    """Assert that a result is no worse than twice the eager one, in the largest and the mean error.

    ``max|actual - oracle| <= 2 max|eager - oracle| + max floor``, the same for the root of the summed
    squares, and the same for the mean signed error, which a bias cannot hide from.

    Args:
        name: What is compared, for the message.
        actual: The result, in its dtype.
        oracle: The same quantity in float64.
        eager: The same quantity by the plain formula in the dtype of ``actual``, one or more runs; the
            worst counts.
        magnitude: Sum of the absolute values of the terms of each result, in float64.
        terms: Number of products that a result sums, for the rounding floor.

    Raises:
        AssertionError: With the figures and the worst position.
    """
    assert actual.shape == oracle.shape, f"{name}: shape {actual.shape}, want {oracle.shape}"
    got, want, size = (t.detach().double().cpu() for t in (actual, oracle, magnitude))
    assert bool(torch.isfinite(got).all()), f"{name}: {int((~got.isfinite()).sum())} not finite"
    floor = rounding_floor(actual, want, size, terms)
    error = got - want
    others = [run.detach().double().cpu() - want for run in eager]
    root = math.sqrt(want.numel())
    checks = {
        "largest error": (error.abs().max(), [o.abs().max() for o in others], floor.max()),
        "norm of error": (error.norm(), [o.norm() for o in others], floor.norm()),
        "mean signed error": (
            error.mean().abs(),
            # Independent errors of this size average out to their norm over the count.
            [4 * o.norm() / want.numel() for o in others],
            4 * floor.norm() / root,
        ),
    }
    for what, (mine, theirs, least) in checks.items():
        eager_error = max(float(t) for t in theirs)
        bound = 2 * eager_error + float(least)
        if float(mine) > bound:
            flat = int(error.abs().argmax())
            position = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), error.shape))
            raise AssertionError(
                f"{name}: {what} {float(mine):.3e} exceeds {bound:.3e} (eager {eager_error:.3e}, "
                f"floor {float(least):.3e}); worst at {position}: {float(got[position]):.6g}, "
                f"want {float(want[position]):.6g}"
            )


def assert_same_nonfinite(
    name: str, actual: Tensor, oracle: Tensor, *, tell_apart: bool = True
) -> None:
    """Assert that NaN stands exactly where the oracle has NaN, and infinities likewise.

    Args:
        name: What is compared, for the message.
        actual: The result.
        oracle: The same quantity by the plain formula.
        tell_apart: Whether NaN, +inf and -inf are different things; else only finite and not.

    Raises:
        AssertionError: With the number of positions that differ.
    """
    got, want = actual.detach().cpu(), oracle.detach().cpu()
    kinds = {"non-finite": (~got.isfinite(), ~want.isfinite())}
    if tell_apart:
        kinds = {
            "NaN": (got.isnan(), want.isnan()),
            "+inf": (got == torch.inf, want == torch.inf),
            "-inf": (got == -torch.inf, want == -torch.inf),
        }
    for what, (a, b) in kinds.items():
        extra, lost = int((a & ~b).sum()), int((b & ~a).sum())
        assert extra + lost == 0, (
            f"{name}: {extra} {what} too many, {lost} missing of {int(b.sum())}"
        )
