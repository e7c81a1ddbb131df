# SPDX-License-Identifier: MIT
"""Every Triton tile of spatial gathering compiles, without a GPU: shared memory fits, nothing spills."""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from ocnet._env import triton_interpreted
from ocnet.ops.spatial_gather import configs, triton_backend
from ocnet.ops.spatial_gather.problem import BackwardCall, ForwardCall
from tests.ops.triton_compiling import TYPES, Launches, compile_launch

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(triton_interpreted(), reason="TRITON_INTERPRET=1: kernels do not compile"),
]

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# In the order of their launches, forward and then backward.
KERNELS = ("forward", "combine", "delta", "logits", "features")
LAYOUTS = ("channels_last", "nchw")


class Case(NamedTuple):
    kernel: str
    dtype: torch.dtype
    capability: int
    regions: int
    tf32: bool = False
    layout: str = "channels_last"
    tokens: int = 97 * 97
    channels: int = 512

    def __str__(self) -> str:
        dtype = "tf32" if self.tf32 else TYPES[self.dtype]
        sizes = f"K{self.regions}-C{self.channels}-{self.layout}-{self.tokens}"
        return f"{self.kernel}-{dtype}-sm{self.capability}-{sizes}"


def _covering() -> list[Case]:
    """OCR's sizes on both kinds of GPU, the widest tiles, float32 twice, the other layout."""
    cases = [Case(kernel, BF16, 90, 19) for kernel in KERNELS]
    for kernel in ("forward", "logits", "features"):
        cases.append(Case(kernel, BF16, 80, 19))
        cases.append(Case(kernel, FP16, 80, 512))
        cases.append(Case(kernel, BF16, 90, 150))
        cases.append(Case(kernel, FP32, 90, 64))
        cases.append(Case(kernel, FP32, 80, 64, tf32=True))
    cases.append(Case("forward", FP16, 90, 60, layout="nchw"))
    # sizes of 1 become constants, and strides from 2 ** 31 on 64-bit arguments
    cases.append(Case("forward", FP16, 80, 1, tokens=1, channels=1))
    cases.append(Case("features", FP16, 80, 16, layout="nchw", tokens=2**28 + 1, channels=16))
    return cases


def _everything_else() -> list[Case]:
    """Every tile in every dtype, on both kinds of GPU and in both layouts."""
    kinds = ((BF16, False), (FP16, False), (FP32, False), (FP32, True))
    cases = [
        Case(kernel, dtype, capability, regions, tf32, layout)
        for kernel, (dtype, tf32), capability, regions, layout in itertools.product(
            ("forward", "logits", "features"), kinds, (80, 90), (1, 19, 33, 150), LAYOUTS
        )
    ]
    return [case for case in cases if case not in set(_covering())]


def _recorded(case: Case, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
    """The kernel and the arguments that the back end launches."""
    launches = Launches(triton_backend._kernels())
    monkeypatch.setattr(triton_backend, "_kernels", lambda: launches)
    n = 4

    def tokens(rows: int, channels: int) -> torch.Tensor:
        if case.layout == "nchw":
            return torch.empty(n, channels, rows, dtype=case.dtype, device="meta").mT
        return torch.empty(n, rows, channels, dtype=case.dtype, device="meta")

    features, logits = tokens(case.tokens, case.channels), tokens(case.tokens, case.regions)
    out, lse = tokens(case.regions, case.channels), torch.empty(n, case.regions, device="meta")
    rest = None if case.dtype == FP32 else tokens(case.regions, case.channels)
    triton_backend.forward(ForwardCall(features, logits, 0.1, case.tf32, out, lse, rest))
    triton_backend.backward(
        BackwardCall(out, features, logits, out, lse, rest, 0.1, case.tf32, features, logits)
    )
    assert len(launches.kept) == len(KERNELS)
    return launches.kept[KERNELS.index(case.kernel)]


@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=str(case)) for case in _covering()),
        *(pytest.param(case, id=str(case), marks=pytest.mark.slow) for case in _everything_else()),
    ],
)
def test_kernel_compiles_and_fits(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record_property: Any
) -> None:
    used = compile_launch(_recorded(case, monkeypatch), case.capability, tmp_path)
    for name, number in used._asdict().items():
        record_property(name, number)
    print(case, used)
    assert used.shared <= configs.SHARED_MEMORY
    assert not used.spilled


@pytest.mark.parametrize("kernel", ["forward", "forward_apart", "logits", "features"])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_legal_call_has_a_tile(kernel: Any, itemsize: int) -> None:
    for regions in (1, 16, 17, 64, 65, 150, 512):
        tile = configs.choose(kernel, itemsize, regions)
        # the least that tensor cores multiply
        assert min(tile.positions, tile.regions, tile.channels) >= configs.LEAST
        assert (
            tile.regions >= configs.padded(regions) or tile is configs.TABLES[itemsize][kernel][-1]
        )


@pytest.mark.parametrize("n", [1, 4, 300])
@pytest.mark.parametrize("l", [1, 255, 257, 97 * 97, 128 * 256, 10**6])
def test_parts_cover_the_positions_once(n: int, l: int) -> None:
    for regions, channels in ((1, 1), (19, 512), (512, 1024)):
        tile = configs.choose("forward", 2, regions)
        parts, length = configs.parts(n, l, regions, channels, tile)
        assert 1 <= parts <= configs.MOST_PARTS
        assert length % tile.positions == 0
        assert (parts - 1) * length < l <= parts * length
