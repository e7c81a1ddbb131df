# SPDX-License-Identifier: MIT
"""The checks of in-place ABN see errors that are planted: one for each mistake that is easily made."""

from collections.abc import Callable

import pytest
import torch

from ocnet.ops.inplace_abn import reference
from ocnet.testing.abn import ABNCase
from tests.ops.test_inplace_abn import check

Recovered = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def replace(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable) -> None:
    true = getattr(reference, name)
    monkeypatch.setattr(reference, name, lambda *arguments: change(true, *arguments))


def wrong_branch(true: Callable, call, channels) -> Recovered:
    """Decide by a rounded output: what is small and negative counts as positive."""
    dy, centred, y, scale = true(call, channels)
    small = (call.out < 0) & (call.out > -1e-3)
    return torch.where(small, call.grad_out.to(dy), dy), centred, y, scale


def no_bias(true: Callable, call, channels) -> Recovered:
    dy, centred, y, scale = true(call, channels)
    return dy, centred + (0 if call.bias is None else channels.of(call.bias)), y, scale


def biased(true: Callable, call) -> None:
    """Move the running variance by the biased one."""
    true(call)
    call.new_var.copy_(0.9 * call.running_var + 0.1 * call.var)


def without_mean(true: Callable, call) -> None:
    """Forget what the mean contributes to the gradient."""
    sums = call.sums.clone()
    sums[0] = 0
    true(call._replace(sums=sums))


def without_deviation(true: Callable, call) -> None:
    sums = call.sums.clone()
    sums[1] = 0
    true(call._replace(sums=sums))


def unsigned(true: Callable, call) -> None:
    """Forget that the scale is the magnitude of the weight."""
    true(call)
    call.grad_weight.mul_(torch.where(call.weight < 0, -1.0, 1.0))


def relative(true: Callable, call) -> None:
    """A forward that is 0.4 % off in every number, as rounding it twice in bfloat16 would be."""
    true(call)
    call.out.mul_(1.004)


PLANTED = {
    "branch": ("_recovered", wrong_branch),
    "bias": ("_recovered", no_bias),
    "running variance": ("forward", biased),
    "mean": ("apply", without_mean),
    "deviation": ("apply", without_deviation),
    "sign of the weight": ("reduce", unsigned),
    "rounding": ("forward", relative),
}
CASE = ABNCase((2, 6, 21, 17), mean=0.3, param=0.1)


@pytest.mark.parametrize("name", PLANTED)
def test_planted_errors_are_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(CASE, "reference", "cpu")
    replace(monkeypatch, *PLANTED[name])
    with pytest.raises(AssertionError, match="exceeds"):
        check(CASE, "reference", "cpu")
