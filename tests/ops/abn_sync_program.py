# SPDX-License-Identifier: MIT
"""Run by each process: ``python abn_sync_program.py RANK RANKS STORE``. Compares with one process."""

import datetime
import sys
import time
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ocnet.ops import inplace_abn

CHANNELS = 5
TIMEOUT_S = 3


@dataclass(frozen=True)
class Case:
    """What each rank has: its map without channels, ``(N, ...)``."""

    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype = torch.float64
    layout: str = "nchw"
    backend: str = "auto"
    inplace: bool = False
    residual: bool = False
    activation: str = "leaky_relu"


EVEN = ((2, 4, 6), (2, 4, 6), (2, 4, 6))
UNEVEN = ((3, 4, 6), (1, 7, 3), (2, 1, 5))
ONE_NUMBER = ((2, 4, 6), (1, 1, 1), (2, 3, 2))
EMPTY = ((2, 4, 6), (0, 4, 6), (1, 2, 2))
EMPTY_FIRST = ((0, 4, 6), (2, 4, 6), (1, 2, 2))


def cases() -> list[Case]:
    found = [
        Case(shapes, layout=layout, backend=backend)
        for shapes in (EVEN, UNEVEN, ONE_NUMBER, EMPTY, EMPTY_FIRST)
        for layout, backend in (("nchw", "auto"), ("channels_last", "auto"), ("nchw", "reference"))
    ]
    found += [Case(UNEVEN, dtype) for dtype in (torch.float32, torch.bfloat16)]
    found += [Case(shapes, inplace=True, residual=True) for shapes in (UNEVEN, EMPTY)]
    return [*found, Case(UNEVEN, activation="elu"), Case(UNEVEN, activation="identity")]


class Count(TorchDispatchMode):
    """Counts collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "_c10d_functional" and "wait" not in func.name():
            self.names.append(func.name().partition("::")[2])
        return func(*args, **(kwargs or {}))


def draw(case: Case, ranks: int) -> list[Tensor]:
    """Return the maps of all ranks: input, residual and gradient of each."""
    g = torch.Generator().manual_seed(0)
    maps = []
    for n, *sides in case.shapes[:ranks]:
        for _ in range(3):
            x = torch.randn((n, CHANNELS, *sides), generator=g, dtype=torch.float64)
            x = (x + 0.5).to(case.dtype)
            rows = x.movedim(1, -1).contiguous().movedim(-1, 1)
            maps.append(rows if case.layout == "channels_last" else x)
    return maps


def as_rows(maps: list[Tensor]) -> Tensor:
    """Put the pixels of maps of different sizes under each other."""
    return torch.cat([m.detach().movedim(1, -1).reshape(-1, CHANNELS) for m in maps])


def vectors(wide: torch.dtype) -> list[Tensor]:
    weight = torch.tensor([1.0, -0.5, 0.7, 1.5, -2.0], dtype=wide, requires_grad=True)
    bias = torch.tensor([0.1, -0.2, 0.0, 0.5, 1.0], dtype=wide, requires_grad=True)
    return [weight, bias, torch.zeros(CHANNELS, dtype=wide), torch.ones(CHANNELS, dtype=wide)]


def results(case: Case, maps: list[Tensor], group, inplace: bool) -> list[Tensor]:
    """Return output, gradients of maps and vectors, running statistics."""
    x, residual, grad_out = (m.detach().clone() for m in maps)
    x.requires_grad_()
    residual.requires_grad_()
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32
    weight, bias, *moved = vectors(wide)
    options = {"param": 1.0} if case.activation == "elu" else {"param": 0.1}
    out = inplace_abn(
        x * 1, weight, bias, *moved, activation=case.activation, activation_param=options["param"],
        residual=residual if case.residual else None, inplace=inplace, group=group,
        backend=case.backend, layer="the layer",
    )  # fmt: skip
    leaves = [x, weight, bias, *([residual] if case.residual else [])]
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_out), *moved]


def check(case: Case, rank: int, ranks: int) -> None:
    maps = draw(case, ranks)
    mine = maps[3 * rank : 3 * rank + 3]
    with Count() as count:
        out, grad, *rest = results(case, mine, dist.group.WORLD, case.inplace)
    assert count.names == ["all_gather_into_tensor", "all_reduce"], count.names
    grad_weight, grad_bias = (g.clone() for g in rest[:2])
    for g in (grad_weight, grad_bias):
        dist.all_reduce(g)

    whole = [as_rows(maps[i::3]) for i in range(3)]
    wanted, wanted_grad, *wanted_rest = results(case, whole, None, False)
    sizes = [m.numel() // CHANNELS for m in maps[::3]]
    here = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    slack = 64 * torch.finfo(case.dtype).eps
    pairs = [
        (as_rows([out]), wanted[here]),
        (as_rows([grad]), wanted_grad[here]),
        (grad_weight, wanted_rest[0]),
        (grad_bias, wanted_rest[1]),
        (rest[-2], wanted_rest[-2]),
        (rest[-1], wanted_rest[-1]),
    ]
    if case.residual:
        pairs.append((as_rows([rest[2]]), wanted_rest[2][here]))
    for got, want in pairs:
        torch.testing.assert_close(got, want, rtol=slack, atol=slack * max(1, len(whole[0]) / 8))


def check_compiled(rank: int, ranks: int) -> None:
    case = Case(UNEVEN, torch.float32)
    x, _, grad_out = draw(case, ranks)[3 * rank : 3 * rank + 3]
    weight, bias, *_ = vectors(torch.float32)

    def step(x: Tensor, inplace: bool) -> Tensor:
        out = inplace_abn(x.sin(), weight, bias, inplace=inplace, group=dist.group.WORLD)
        return (out * grad_out).sum()

    for inplace in (False, True):
        leaf = x.detach().requires_grad_()
        want = torch.autograd.grad(step(leaf, inplace), (leaf, weight, bias))
        torch._dynamo.reset()
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        got = torch.autograd.grad(compiled(leaf, inplace), (leaf, weight, bias))
        torch.testing.assert_close(got, want)


def check_alone(rank: int, group) -> None:
    """Out of training, and for who is no member, nobody talks."""
    x = torch.randn(2, CHANNELS, 3, requires_grad=True)
    weight, bias, *moved = vectors(torch.float32)
    with Count() as count:
        inplace_abn(x, weight, bias, *moved, False, group=group).sum().backward()
    assert count.names == []


def check_subgroup(rank: int, ranks: int) -> None:
    group = dist.new_group([0, 1])
    case = Case(UNEVEN)
    maps = draw(case, ranks)
    with Count() as count:
        out, grad, *_ = results(case, maps[3 * rank : 3 * rank + 3], group, False)
    together = rank < 2
    assert len(count.names) == (2 if together else 0)
    others = [maps[3 * r : 3 * r + 3] for r in ((0, 1) if together else (rank,))]
    whole = [as_rows([m[i] for m in others]) for i in range(3)]
    wanted, wanted_grad, *_ = results(case, whole, None, False)
    start = sum(m[0].numel() // CHANNELS for m in others[: rank if together else 0])
    here = slice(start, start + out.numel() // CHANNELS)
    torch.testing.assert_close(as_rows([out]), wanted[here])
    torch.testing.assert_close(as_rows([grad]), wanted_grad[here])


def check_one_number_in_all(rank: int) -> None:
    x = torch.randn(1 if rank == 0 else 0, CHANNELS, 1, 1)
    with pytest.raises(ValueError, match=r"number per channel over all ranks .* got 1$"):
        inplace_abn(x, group=dist.group.WORLD)


def check_absent(rank: int) -> None:
    """The last: afterwards the group is of no use. The others are there, but never come to the layer."""
    if rank > 0:
        time.sleep(2 * TIMEOUT_S)
        return
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"must reach backbone\.layer1\.0\.bn2 in the same step"):
        inplace_abn(torch.randn(4, 3), group=dist.group.WORLD, layer="backbone.layer1.0.bn2")
    assert time.monotonic() - started >= TIMEOUT_S - 0.5


def main(rank: int, ranks: int, store: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks,
        timeout=datetime.timedelta(seconds=120),
    )  # fmt: skip
    for case in cases():
        check(case, rank, ranks)
    check_compiled(rank, ranks)
    check_alone(rank, dist.group.WORLD)
    check_subgroup(rank, ranks)
    check_one_number_in_all(rank)
    done = len(cases()) + 4
    dist.barrier()
    dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=TIMEOUT_S), dist.group.WORLD)
    check_absent(rank)
    print(f"checked {done + 1} calls")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
