# SPDX-License-Identifier: MIT
"""Run by two processes: ``python sharding_program.py RANK STORE``. Compares with one process."""

import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from ocnet.ops import oc_attention, spatial_gather

IMAGES, CHANNELS, ROWS, WHOLE = Shard(0), Shard(1), Shard(2), Replicate()
RANKS = 2


def compare(function: Callable, mesh, tensors, placements, out_as) -> None:
    """Results and gradients of a call on shards against those of the call on whole tensors."""
    whole = [t.clone().requires_grad_() for t in tensors]
    out = function(*whole)
    weight = torch.randn(out.shape).to(out.dtype)
    expected = (out, *torch.autograd.grad(out, whole, weight))

    parts = [
        distribute_tensor(t.detach(), mesh, [p]).requires_grad_()
        for t, p in zip(whole, placements, strict=True)
    ]
    result = function(*parts)
    assert isinstance(result, DTensor)
    assert result.placements == (out_as,), result.placements
    assert result.to_local().numel() * (1 if out_as == WHOLE else RANKS) == out.numel()
    grads = torch.autograd.grad(result, parts, distribute_tensor(weight, mesh, [out_as]))
    for mine, want in zip((result, *grads), expected, strict=True):
        # Each rank rounds its part of a sum over rows, and the sum of the parts is rounded again.
        slack = 2 * torch.finfo(out.dtype).eps * RANKS * float(want.abs().max())
        torch.testing.assert_close(mine.full_tensor(), want, rtol=0, atol=slack)


def compare_attention(mesh, query_as, key_as, *, shared: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(4, 5, 6, 3).to(dtype), torch.randn(4, 5, 4, 3).to(dtype)
    value = torch.randn(4, 7, *(query if shared else key).shape[2:]).to(dtype)
    if shared:

        def symmetric(query, value):
            return oc_attention(query, query, value)

        compare(symmetric, mesh, (query, value), (query_as, key_as), query_as)
    else:
        compare(oc_attention, mesh, (query, key, value), (query_as, key_as, key_as), query_as)


def compare_gather(mesh, features_as, logits_as, out_as, *, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    features, logits = torch.randn(4, 8, 6, 3).to(dtype), torch.randn(4, 4, 6, 3).to(dtype)
    compare(spatial_gather, mesh, (features, logits), (features_as, logits_as), out_as)


def main(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    checked = 0
    for dtype in (torch.float32, torch.bfloat16):
        for query_as, key_as, shared in (
            (IMAGES, IMAGES, True),
            (IMAGES, IMAGES, False),
            (ROWS, WHOLE, False),
            (WHOLE, WHOLE, False),
        ):
            if dtype == torch.bfloat16 and query_as == WHOLE:
                continue
            compare_attention(mesh, query_as, key_as, shared=shared, dtype=dtype)
            checked += 1
        # Regions are channels of the logits and rows of the context.
        for features_as, logits_as, out_as in (
            (IMAGES, IMAGES, IMAGES),
            (WHOLE, CHANNELS, ROWS),
            (CHANNELS, WHOLE, CHANNELS),
            (WHOLE, WHOLE, WHOLE),
        ):
            compare_gather(mesh, features_as, logits_as, out_as, dtype=dtype)
            checked += 1
    # The key's gradient is a sum over ranks before anybody asks for it.
    query = distribute_tensor(torch.randn(1, 5, 4, 3), mesh, [ROWS])
    key = distribute_tensor(torch.randn(1, 5, 4, 3), mesh, [WHOLE]).requires_grad_()
    (grad,) = torch.autograd.grad(oc_attention(query, key, key.detach()).sum(), key)
    assert grad.placements[0].is_partial() or grad.placements[0].is_replicate()
    checked += 1
    # Rows that do not divide are gathered, not refused.
    query = distribute_tensor(torch.randn(1, 5, 3, 3), mesh, [ROWS])
    context = oc_attention(query, key.detach(), key.detach())
    torch.testing.assert_close(
        context.full_tensor(),
        oc_attention(*(t.detach().full_tensor() for t in (query, key, key))),
    )
    checked += 1
    dist.destroy_process_group()
    print(f"checked {checked} calls")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
