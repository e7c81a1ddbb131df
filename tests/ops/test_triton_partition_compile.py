# SPDX-License-Identifier: MIT
"""Launches on groups compile to machine code without a spill, and fit the shared memory of their GPUs."""

import itertools
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from ocnet._env import triton_interpreted
from ocnet.ops import Blocks, Grid, Partition, Strided
from ocnet.ops.oc_attention import triton_plan
from ocnet.ops.partitioned_attention import configs, triton_backend
from ocnet.ops.partitioned_attention.problem import BackwardCall, ForwardCall
from tests.ops.triton_compiling import (
    KERNELS,
    KINDS,
    TYPES,
    WIDTHS,
    Launches,
    assert_usable,
    compile_launch,
    limit,
)

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(triton_interpreted(), reason="TRITON_INTERPRET=1: kernels do not compile"),
]

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
PYRAMID = (Grid(1), Grid(2), Grid(3), Grid(6))
# of 104 x 104 pixels: groups of 64, of 169, and of 5 x 8 to 11 x 16
SHORT, LONG, UNEVEN = (Blocks(8, 8),), (Strided(8, 8),), (Strided(8, 8), Blocks(11, 16))


class Case(NamedTuple):
    """One launch, of all stages."""

    kernel: str
    dtype: torch.dtype
    capability: int
    e: int
    ev: int
    tf32: bool = False
    partitions: tuple[Partition, ...] = PYRAMID
    layout: str = "channels_last"

    def __str__(self) -> str:
        dtype = "tf32" if self.tf32 else TYPES[self.dtype]
        kinds = "-".join(type(each).__name__ for each in self.partitions)
        sizes = f"E{self.e}-Ev{self.ev}-{self.layout}-{kinds}"
        return f"{self.kernel}-{dtype}-sm{self.capability}-{sizes}"


def _covering() -> list[Case]:
    """The pyramid's and ISA's channels on both kinds of GPU, both kinds of float32, small groups."""
    cases = [Case(kernel, BF16, 90, 256, 512) for kernel in ("forward", "value", "both")]
    cases += [Case(kernel, BF16, 90, 256, 512, partitions=LONG) for kernel in ("query", "key")]
    cases += [Case(kernel, BF16, 80, 256, 512) for kernel in ("forward", "both", "delta")]
    cases += [
        Case("few", BF16, 90, 256, 256, partitions=SHORT),
        Case("few", BF16, 90, 256, 256, partitions=UNEVEN),
        Case("few_query", BF16, 90, 256, 256, partitions=SHORT),
        Case("forward", FP32, 90, 256, 512, tf32=True),
        Case("forward", FP16, 80, 130, 33, layout="nchw", partitions=SHORT),
    ]
    return cases


def _everything_else() -> list[Case]:
    """Every pair of padded widths in every kind of tiles; groups of every size that is kept on chip."""
    cases = [
        Case(kernel, dtype, capability, e, ev, tf32)
        for kernel, (dtype, tf32), capability, e, ev in itertools.product(
            KERNELS, KINDS, (80, 90), WIDTHS, WIDTHS
        )
    ]
    small = ((1, 19), (6, 10), (9, 10), (8, 16), (10, 15), (9, 19))
    cases += [
        Case(kernel, BF16, 90, e, ev, partitions=(Blocks(*size),))
        for kernel, size, e, ev in itertools.product(
            ("few", "few_query"), small, WIDTHS[:-1], WIDTHS[:-1]
        )
        if configs.few_keys(kernel, "half", True, e, ev, size[0] * size[1]) is not None
    ]
    return [case for case in cases if case not in set(_covering())]


LAUNCHED = {
    "forward": "oc_attention_fwd_kernel",
    "few": "oc_attention_few_fwd_kernel",
    "few_query": "oc_attention_few_bwd_query_kernel",
    "delta": "oc_attention_bwd_delta_kernel",
}


def _recorded(case: Case, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """Return the launches of one kernel, with their arguments."""
    launches = Launches(triton_plan.kernels())
    monkeypatch.setattr(triton_plan, "kernels", lambda: launches)
    monkeypatch.setattr(triton_plan, "is_hopper", lambda device: case.capability == 90)

    def maps(channels: int) -> list[torch.Tensor]:
        shape = (2, 104 * 104, channels)
        if case.layout == "nchw":
            shape = (2, channels, 104 * 104)
        each = [torch.empty(shape, dtype=case.dtype, device="meta") for _ in case.partitions]
        return [matrix.mT for matrix in each] if case.layout == "nchw" else each

    numbers = [n for partition in case.partitions for n in partition.axes(104, 104).flat()]
    query, value, out, kernel = maps(case.e), maps(case.ev), maps(case.ev), case.kernel
    key = [] if kernel in ("forward", "both") else maps(case.e)
    lse = [torch.empty(2, 104 * 104, device="meta") for _ in case.partitions]
    rest = [] if case.dtype == FP32 else out
    if kernel in ("forward", "few"):
        call = ForwardCall(query, key, value, numbers, 0.1, case.tf32, out, lse, rest)
        triton_backend.forward(call)
    else:
        grads = (
            query if kernel in ("query", "few_query", "both", "delta") else [],
            key if kernel == "key" else [],
            value if kernel in ("value", "both", "key") else [],
        )
        call = (out, query, key, value, out, lse, rest, numbers, 0.1, case.tf32, *grads)
        triton_backend.backward(BackwardCall(*call))
    wanted = LAUNCHED.get(kernel, "oc_attention_bwd_kernel")
    return [launch for launch in launches.kept if launch[0].fn.__name__ == wanted]


@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=str(case)) for case in _covering()),
        *(pytest.param(case, id=str(case), marks=pytest.mark.slow) for case in _everything_else()),
    ],
)
def test_launch_compiles_without_a_spill(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record_property: Any
) -> None:
    launch, *others = _recorded(case, monkeypatch)
    # At some widths the gradient of the values has a launch of its own.
    assert len(others) == 0 or case.kernel in ("key", "both")
    used = compile_launch(launch, case.capability, tmp_path)
    for name in ("shared", "registers", "spilled"):
        record_property(name, getattr(used, name))
    print(case, used.shared, used.registers, used.spilled)
    assert used.shared <= limit(case.capability)
    assert not used.spilled
    assert used.described == 0
    if case.kernel != "delta":
        assert re.search(
            r"wgmma\.mma_async" if case.capability == 90 else r"mma\.sync", used.assembly
        )


@pytest.mark.parametrize("hopper", [True, False], ids=["hopper", "portable"])
@pytest.mark.parametrize("math", ["half", "tf32", "float32"])
@pytest.mark.parametrize("version", [(3, 6), (3, 9)], ids=str)
def test_every_legal_call_has_a_tile(hopper: bool, math: Any, version: Any) -> None:
    for kernel, e, ev in itertools.product(KERNELS, (*WIDTHS, 1, 17, 511), (*WIDTHS, 3, 130, 257)):
        tile = configs.choose(kernel, math, hopper, version, e, ev)
        assert_usable(tile, kernel, e, ev)


def test_all_stages_are_in_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel, partitions in (("forward", PYRAMID), ("delta", PYRAMID), ("few", UNEVEN)):
        (launch,) = _recorded(Case(kernel, BF16, 90, 64, 64, partitions=partitions), monkeypatch)
        assert len(launch[1]["p_out"]) == len(partitions)
        monkeypatch.undo()
