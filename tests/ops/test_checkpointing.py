# SPDX-License-Identifier: MIT
"""The selective policy: attention runs once, everything around it twice."""

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from ocnet.ops import keep_outputs_policy, oc_attention, pyramid_attention


class Count(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition(".")[0]
        self.calls[name] = self.calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def plain(keys: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    return oc_attention(keys, keys, maps)


def pyramid(keys: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    return sum(pyramid_attention([(keys, keys, maps)] * 2, [1, 2]))


def _block(attend, maps: torch.Tensor) -> torch.Tensor:
    return attend(torch.nn.functional.leaky_relu(maps), maps).sin()


def run(attend, **options) -> tuple[torch.Tensor, dict[str, int]]:
    torch.manual_seed(0)
    maps = torch.randn(1, 4, 5, 5, requires_grad=True)
    with Count() as count:
        block = partial(_block, attend)
        checkpoint(block, maps, use_reentrant=False, **options).sum().backward()
    assert maps.grad is not None
    return maps.grad, count.calls


@pytest.mark.parametrize(
    ("attend", "name"), [(plain, "oc_attention_fwd"), (pyramid, "partitioned_attention_fwd")]
)
def test_attention_is_computed_once(attend, name: str) -> None:
    context = partial(create_selective_checkpoint_contexts, keep_outputs_policy)
    again, twice = run(attend)
    kept, once = run(attend, context_fn=context)
    assert torch.equal(again, kept)
    assert twice[f"ocnet::{name}"] == 2
    assert once[f"ocnet::{name}"] == 1
    assert once["aten::leaky_relu"] == twice["aten::leaky_relu"] == 2
