# SPDX-License-Identifier: MIT
"""Calls of the native op of the backward kernels on Hopper's own instructions."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.test_cuda_backward import Call
from tests.ops.test_cuda_kernels import NAN, place

each_precision = pytest.mark.parametrize("precision", ["bfloat16", "float16"])
each_sharing = pytest.mark.parametrize("keys", [None, 75], ids=["shared", "separate"])


def poisoned_rows(values: Tensor, device: str) -> Tensor:
    """Copy (N, tokens, channels) values into aligned rows; what lies between and behind is NaN."""
    n, tokens, channels = values.shape
    room = values.new_full((n, tokens + 3, -(-channels // 8) * 8 + 8), NAN, device=device)
    return room[:, :tokens, :channels].copy_(values)


class Backward:
    """Runs calls backward; returns the gradients that are wanted, by name."""

    def __init__(self, ops: Any, device: str) -> None:
        self.ops = ops
        self.device = device

    def __call__(
        self, call: Call, wanted: str = "qkv", layout: str = "channels_last"
    ) -> dict[str, Tensor]:
        return self._run(self.ops.oc_attention_hopper_bwd, call, (), wanted, layout)

    def portable(self, call: Call) -> dict[str, Tensor]:
        """What the kernels for every device make of the call."""
        return self._run(self.ops.oc_attention_bwd, call, (False,), "qkv", "channels_last")

    def _run(
        self, op: Callable[..., None], call: Call, flags: tuple[bool, ...], wanted: str, layout: str
    ) -> dict[str, Tensor]:
        inputs = [
            None if t is None else poisoned_rows(t, self.device)
            for t in (call.grad_out, call.query, call.key, call.value)
        ]
        saved = [
            None if t is None else t.to(self.device) for t in (call.out, call.lse, call.residual)
        ]
        likes = {"grad_query": call.query, "grad_key": call.key, "grad_value": call.value}
        grads = {
            name: None
            if like is None or name.removeprefix("grad_")[0] not in wanted
            else place(torch.full_like(like, NAN), layout, self.device)
            for name, like in likes.items()
        }
        op(*inputs, *saved, call.scale, *flags, *grads.values())
        return {name: grad for name, grad in grads.items() if grad is not None}


def tiles_of(emulator: Any) -> list[tuple[str, int, int]]:
    """Role, channels and values of the tile of each launch that has one, in their order."""
    found = []
    for launch in emulator.launches():
        tile = re.search(
            r"Hopper(Bwd|BwdWide|Query)Tile<ocnet::\w+, (\d+), (\d+)(.*)", launch.kernel
        )
        if tile is not None:
            kind, channels, values, rest = tile.groups()
            both = kind == "BwdWide" or re.match(r", \(ocnet::HopperRole\)0", rest)
            role = "queries" if kind == "Query" else "both" if both else "keys"
            found.append((role, int(channels), int(values)))
    return found
