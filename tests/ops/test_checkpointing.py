# SPDX-License-Identifier: MIT
"""The selective policy: attention runs once, everything around it twice."""

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from ocnet.ops import keep_outputs_policy, oc_attention


class Count(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition(".")[0]
        self.calls[name] = self.calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def block(maps: torch.Tensor) -> torch.Tensor:
    keys = torch.nn.functional.leaky_relu(maps)
    return oc_attention(keys, keys, maps).sin()


def run(**options) -> tuple[torch.Tensor, dict[str, int]]:
    torch.manual_seed(0)
    maps = torch.randn(1, 4, 5, 5, requires_grad=True)
    with Count() as count:
        checkpoint(block, maps, use_reentrant=False, **options).sum().backward()
    assert maps.grad is not None
    return maps.grad, count.calls


def test_attention_is_computed_once() -> None:
    context = partial(create_selective_checkpoint_contexts, keep_outputs_policy)
    plain, twice = run()
    kept, once = run(context_fn=context)
    assert torch.equal(plain, kept)
    assert twice["ocnet::oc_attention_fwd"] == 2
    assert once["ocnet::oc_attention_fwd"] == 1
    assert once["aten::leaky_relu"] == twice["aten::leaky_relu"] == 2
