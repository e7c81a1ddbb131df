# SPDX-License-Identifier: MIT
"""Every tile compiles to machine code, without a GPU, and fits the shared memory of its GPUs.

What is compiled is what the back end would launch: its launches are recorded on tensors without
storage and turned into the signature that Triton's own launcher would make of them.
"""

import itertools
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from ocnet._env import triton_interpreted
from ocnet.ops.oc_attention import configs, triton_backend, triton_plan
from ocnet.ops.oc_attention.problem import BackwardCall, ForwardCall
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


class Case(NamedTuple):
    """One launch. ``cut``: the loops are cut into parts. ``keys``: other than the queries."""

    kernel: str
    dtype: torch.dtype
    capability: int
    e: int
    ev: int
    tf32: bool = False
    layout: str = "channels_last"
    tokens: int = 97 * 97
    keys: int | None = None
    cut: bool = False

    def __str__(self) -> str:
        dtype = "tf32" if self.tf32 else TYPES[self.dtype]
        sizes = f"E{self.e}-Ev{self.ev}-{self.layout}-{self.tokens}-{self.keys}"
        return f"{self.kernel}-{dtype}-sm{self.capability}-{sizes}-{self.cut}"


def _covering() -> list[Case]:
    """The main size on both kinds of GPU, wide maps, both kinds of float32, odd channels, parts."""
    cases = [Case(kernel, BF16, 90, 256, 256) for kernel in KERNELS]
    for kernel in ("forward", "both"):
        cases.append(Case(kernel, FP16, 80, 256, 256, layout="nchw"))
        cases.append(Case(kernel, BF16, 90, 256, 512))
        cases.append(Case(kernel, FP32, 90, 256, 256, tf32=True))
        cases.append(Case(kernel, FP32, 80, 256, 256))
    cases.append(Case("both", BF16, 90, 512, 64))
    cases.append(Case("forward", BF16, 90, 256, 256, cut=True))
    cases.append(Case("key", BF16, 90, 256, 256, keys=19, cut=True))
    cases.append(Case("few", BF16, 90, 256, 256, keys=19))
    cases.append(Case("few", BF16, 90, 256, 256, keys=171))
    cases.append(Case("few_query", BF16, 90, 256, 256, keys=60))
    cases.append(Case("key", BF16, 80, 128, 128))
    cases.append(Case("forward", BF16, 90, 130, 33, layout="nchw"))
    cases.append(Case("delta", BF16, 80, 512, 512, layout="nchw"))
    cases.append(Case("combine_forward", FP16, 80, 16, 130))
    cases.append(Case("combine", FP16, 80, 130, 16, layout="nchw"))
    cases.append(Case("round", FP32, 80, 130, 16, tf32=True, layout="nchw"))
    # sizes of 1 become constants, and strides from 2 ** 31 on 64-bit arguments
    cases.append(Case("forward", FP16, 80, 1, 1, tokens=1))
    cases.append(Case("few", FP16, 90, 1, 1, tokens=1))
    cases.append(Case("both", FP16, 80, 1, 1, tokens=1))
    cases.append(Case("value", FP16, 80, 16, 16, layout="nchw", tokens=2**28 + 1))
    return cases


def _everything_else() -> list[Case]:
    """Every pair of padded widths in every kind of tiles; published sizes in NCHW and float16."""
    cases = [
        Case(kernel, dtype, capability, e, ev, tf32, cut=cut)
        for kernel, (dtype, tf32), capability, e, ev, cut in itertools.product(
            KERNELS, KINDS, (80, 90), WIDTHS, WIDTHS, (False, True)
        )
    ]
    cases += [
        Case(kernel, BF16, 90, e, ev, keys=keys)
        for kernel, keys, e, ev in itertools.product(
            ("few", "few_query"), (19, 60, 90, 128, 150, 171), WIDTHS[:-1], WIDTHS[:-1]
        )
        if kernel == "few" or keys <= 128
    ]
    published = ((256, 256), (128, 256), (256, 512), (512, 256), (19, 40), (1, 1))
    cases += [
        Case(kernel, dtype, capability, e, ev, tf32, "nchw", cut=cut)
        for kernel, (dtype, tf32), capability, (e, ev), cut in itertools.product(
            KERNELS, ((FP16, False), *KINDS[1:]), (80, 90), published, (False, True)
        )
    ]
    return [case for case in cases if case not in set(_covering())]


LAUNCHED = {
    "forward": "oc_attention_fwd_kernel",
    "few": "oc_attention_few_fwd_kernel",
    "few_query": "oc_attention_few_bwd_query_kernel",
    "delta": "oc_attention_bwd_delta_kernel",
    "combine_forward": "oc_attention_fwd_combine_kernel",
    "combine": "oc_attention_bwd_combine_kernel",
    "round": "oc_attention_round_kernel",
}


def _recorded(case: Case, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
    """The kernel and the arguments that the back end launches."""
    launches = Launches(triton_plan.kernels())
    parts = 3 if case.cut or case.kernel.startswith("combine") else 1
    monkeypatch.setattr(triton_plan, "kernels", lambda: launches)
    monkeypatch.setattr(triton_plan, "is_hopper", lambda device: case.capability == 90)
    monkeypatch.setattr(configs, "splits", lambda grid, steps, processors: min(parts, steps))
    n, l, kernel = 2, case.tokens, case.kernel

    def tokens(count: int, channels: int) -> torch.Tensor:
        if case.layout == "nchw":
            return torch.empty(n, channels, count, dtype=case.dtype, device="meta").mT
        return torch.empty(n, count, channels, dtype=case.dtype, device="meta")

    s = case.keys or l
    shared = case.keys is None and kernel in ("forward", "both")
    query, value, out = tokens(l, case.e), tokens(s, case.ev), tokens(l, case.ev)
    key = None if shared else tokens(s, case.e)
    lse, rest = torch.empty(n, l, device="meta"), None if case.dtype == FP32 else out
    if kernel in ("forward", "few", "combine_forward", "round"):
        triton_backend.forward(ForwardCall(query, key, value, 0.1, case.tf32, out, lse, rest))
    else:
        grads = (
            query if kernel in ("query", "few_query", "both", "delta") else None,
            key if kernel in ("key", "combine") else None,
            value if kernel in ("value", "both", "key") else None,
        )
        triton_backend.backward(
            BackwardCall(out, query, key, value, out, lse, rest, 0.1, case.tf32, *grads)
        )
    wanted = LAUNCHED.get(kernel, "oc_attention_bwd_kernel")
    return next(launch for launch in launches.kept if launch[0].fn.__name__ == wanted)


@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=str(case)) for case in _covering()),
        *(pytest.param(case, id=str(case), marks=pytest.mark.slow) for case in _everything_else()),
    ],
)
def test_kernel_compiles_within_shared_memory(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record_property: Any
) -> None:
    launch = _recorded(case, monkeypatch)
    used = compile_launch(launch, case.capability, tmp_path)
    for name in ("shared", "registers", "spilled"):
        record_property(name, getattr(used, name))
    print(case, used.shared, used.registers, used.spilled)
    assert used.shared <= limit(case.capability)
    kind = "tf32" if case.tf32 else "float32" if case.dtype == FP32 else "half"
    assert not used.spilled
    # Triton's launcher refuses a descriptor that it has no encoding of
    assert used.described == sum(hasattr(given, "block_shape") for given in launch[1].values())
    if case.kernel in KERNELS:
        # float32 products too run on tensor cores; Hopper's own are reached through descriptors
        narrow = {"half": r"(bf16|f16)", "tf32": "tf32", "float32": "bf16"}[kind]
        hopper = case.capability == 90
        product = r"wgmma\.mma_async" if hopper else r"mma\.sync"
        assert re.search(rf"{product}\S*{narrow}", used.assembly)
        assert any(hasattr(given, "block_shape") for given in launch[1].values()) == hopper
        # what cuts computed TF32 operands after half of the last place was added
        assert ("-8192" in used.assembly) == (kind == "tf32")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("hopper", [True, False], ids=["hopper", "portable"])
@pytest.mark.parametrize("math", ["half", "tf32", "float32"])
@pytest.mark.parametrize("version", [(3, 6), (3, 9)], ids=str)
def test_every_legal_call_has_a_tile(kernel: Any, hopper: bool, math: Any, version: Any) -> None:
    for e, ev in itertools.product((*WIDTHS, 1, 3, 17, 130, 257, 511), repeat=2):
        tile = configs.choose(kernel, math, hopper, version, e, ev)
        assert_usable(tile, kernel, e, ev)
