# SPDX-License-Identifier: MIT
"""Runs calls of the native ops of in-place ABN on a GPU or in the emulator, and checks them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.abn_calls import (
    Call,
    Results,
    Tensors,
    assert_within_rounding,
    backward_sizes,
    draw,
    every_gradient,
    exact_backward,
    exact_forward,
    forward_sizes,
    run_backward,
    run_backward_in_steps,
    run_forward,
)

SUBJECTS = ["emulated", pytest.param("cuda", marks=pytest.mark.gpu)]
NAN = float("nan")

# What kernels that stream need, and too little for a channel of BIG.
LITTLE = {"shared_limit": 6400, "clusters": False}
BIG = (3, 2, 4400)
# A shape that each family of kernels takes, and what an emulated device must be like.
FAMILIES = {
    "warps": ((3, 5, 49), {}),
    "block": ((3, 2, 735), {}),
    "stream": (BIG, LITTLE),
    "rows": ((45, 7), {}),
}
families = pytest.mark.parametrize("family", FAMILIES)
only_emulated = pytest.mark.parametrize("subject", ["emulated"], indirect=True)


class Runner:
    """Runs calls on the subject, and checks them."""

    def __init__(self, subject: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ops: Any = getattr(torch.ops, f"ocnet_{subject}")
        self.device = device
        self._monkeypatch = monkeypatch

    def draw(self, call: Call) -> Tensors:
        return draw(call).to(self.device)

    def forward(self, call: Call, tensors: Tensors, **how: Any) -> Results:
        return run_forward(self.ops, call, tensors, **how)

    def var(self, tensors: Tensors, results: Results) -> Tensor:
        return results.get("var", tensors.running_var)

    def backward(self, call: Call, tensors: Tensors, forward: Results, **how: Any) -> Results:
        wanted = how.get("wanted", every_gradient(call))
        run = run_backward_in_steps if how.get("steps") else run_backward
        return run(self.ops, call, tensors, forward["out"], self.var(tensors, forward), wanted)

    def both(self, call: Call, **how: Any) -> Results:
        tensors = self.draw(call)
        forward = self.forward(call, tensors, **how)
        return forward | self.backward(call, tensors, forward)

    def check_forward(self, call: Call, tensors: Tensors, **how: Any) -> Results:
        actual, exact = self.forward(call, tensors, **how), exact_forward(call, tensors)
        count = tensors.x.numel() // call.shape[1]
        assert_within_rounding(actual, exact, forward_sizes(call, tensors, exact), count)
        return actual

    def check_backward(self, call: Call, tensors: Tensors, forward: Results, **how: Any) -> Results:
        actual = self.backward(call, tensors, forward, **how)
        given = forward["out"], self.var(tensors, forward)
        exact = exact_backward(call, tensors, *given, self._monkeypatch)
        count = tensors.x.numel() // call.shape[1]
        sizes = backward_sizes(call, tensors, *given, exact)
        assert_within_rounding(actual, exact, sizes, count)
        return actual

    def check(self, call: Call, **how: Any) -> None:
        tensors = self.draw(call)
        self.check_backward(call, tensors, self.check_forward(call, tensors, **how))


def kernels(emulator: Any) -> list[str]:
    names = (launch.kernel.partition("inplace_abn_")[2] for launch in emulator.launches())
    return [name.partition("_kernel")[0] for name in names]
