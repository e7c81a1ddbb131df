# SPDX-License-Identifier: MIT
"""Run by two processes: ``python sharding_program.py RANK STORE``. Compares with one process."""

import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from ocnet.ops import oc_attention

IMAGES, ROWS, WHOLE = Shard(0), Shard(2), Replicate()
RANKS = 2


def compare(mesh, query_as, key_as, *, shared: bool, dtype: torch.dtype, rows: int = 6) -> None:
    torch.manual_seed(0)
    query = torch.randn(4, 5, rows, 3).to(dtype)
    key = query if shared else torch.randn(4, 5, 4, 3).to(dtype)
    value = torch.randn(4, 7, *key.shape[2:]).to(dtype)
    weight = torch.randn(4, 7, rows, 3).to(dtype)

    whole = [
        t.clone().requires_grad_() for t in ((query, value) if shared else (query, key, value))
    ]
    out = oc_attention(whole[0], whole[0] if shared else whole[1], whole[-1])
    expected = (out, *torch.autograd.grad(out, whole, weight))

    placements = [query_as, key_as] if shared else [query_as, key_as, key_as]
    parts = [
        distribute_tensor(t.detach(), mesh, [p]).requires_grad_()
        for t, p in zip(whole, placements, strict=True)
    ]
    result = oc_attention(parts[0], parts[0] if shared else parts[1], parts[-1])
    assert isinstance(result, DTensor)
    assert result.placements == (query_as,), result.placements
    assert result.to_local().numel() * (1 if query_as == WHOLE else RANKS) == out.numel()
    grads = torch.autograd.grad(result, parts, distribute_tensor(weight, mesh, [query_as]))
    for mine, want in zip((result, *grads), expected, strict=True):
        # Each rank rounds its part of a sum over rows, and the sum of the parts is rounded again.
        slack = 2 * torch.finfo(dtype).eps * RANKS * float(want.abs().max())
        torch.testing.assert_close(mine.full_tensor(), want, rtol=0, atol=slack)


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
            compare(mesh, query_as, key_as, shared=shared, dtype=dtype)
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
