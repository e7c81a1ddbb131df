# SPDX-License-Identifier: MIT
"""Every tile compiles to machine code, without a GPU, and fits the shared memory of its GPUs.

What is compiled is what the back end would launch: its launches are recorded on tensors without
storage and turned into the signature that Triton's own launcher would make of them.
"""

import functools
import itertools
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from ocnet._env import triton_interpreted
from ocnet.ops.oc_attention import configs, triton_backend
from ocnet.ops.oc_attention.problem import BackwardCall, ForwardCall

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(triton_interpreted(), reason="TRITON_INTERPRET=1: kernels do not compile"),
]

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TYPES = {BF16: "bf16", FP16: "fp16", FP32: "fp32"}
KERNELS = ("forward", "value", "feature", "feature_shared")
WIDTHS = (16, 32, 64, 128, 256, 512)


class Case(NamedTuple):
    kernel: str
    dtype: torch.dtype
    capability: int
    e: int
    ev: int
    precision: str = "ieee"
    layout: str = "channels_last"
    tokens: int = 97 * 97

    def __str__(self) -> str:
        dtype = self.precision if self.dtype == FP32 else TYPES[self.dtype]
        sizes = f"E{self.e}-Ev{self.ev}-{self.layout}-{self.tokens}"
        return f"{self.kernel}-{dtype}-sm{self.capability}-{sizes}"


def _covering() -> list[Case]:
    """The main size and the widest maps on both kinds of GPU, float32 twice, odd channels."""
    cases = []
    for kernel in KERNELS:
        cases.append(Case(kernel, BF16, 90, 256, 256))
        cases.append(Case(kernel, FP16, 80, 512, 512, layout="nchw"))
    for kernel in ("value", "feature_shared"):
        # one slice of the 256 / 256 tile, which is then kept on chip whole
        cases.append(Case(kernel, BF16, 80, 256, 128))
        cases.append(Case(kernel, FP16, 90, 256, 512, layout="nchw"))
    cases.append(Case("feature_shared", FP32, 80, 512, 512))
    cases.append(Case("feature_shared", FP32, 90, 512, 512, precision="tf32"))
    cases.append(Case("forward", BF16, 90, 130, 33, layout="nchw"))
    cases.append(Case("delta", BF16, 80, 512, 512, layout="nchw"))
    # sizes of 1 become constants, and strides from 2 ** 31 on 64-bit arguments
    cases.append(Case("forward", FP16, 80, 1, 1, tokens=1))
    cases.append(Case("feature_shared", FP16, 80, 1, 1, tokens=1))
    cases.append(Case("value", FP16, 80, 16, 16, layout="nchw", tokens=2**28 + 1))
    return cases


def _everything_else() -> list[Case]:
    """Every pair of padded widths in both kinds of tiles; published sizes in the other dtypes."""
    cases = [
        Case(kernel, BF16, capability, e, ev)
        for kernel, capability, e, ev in itertools.product(KERNELS, (80, 90), WIDTHS, WIDTHS)
    ]
    published = ((256, 256), (128, 256), (256, 512), (512, 256), (19, 40), (1, 1))
    floats = ((FP16, "ieee"), (FP32, "ieee"), (FP32, "tf32"))
    cases += [
        Case(kernel, dtype, capability, e, ev, precision, "nchw")
        for kernel, (dtype, precision), capability, (e, ev) in itertools.product(
            KERNELS, floats, (80, 90), published
        )
    ]
    return [case for case in cases if case not in set(_covering())]


class _Launches:
    """Stands in for the kernels' module and keeps what would have been launched."""

    def __init__(self, kernels: ModuleType) -> None:
        self._kernels = kernels
        self.kept: list[tuple[Any, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self._kernels, name)
        launches = self.kept

        class Launcher:
            def __getitem__(self, grid: tuple[int, ...]) -> Any:
                return lambda **arguments: launches.append((kernel, arguments))

        return Launcher()


def _recorded(case: Case, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
    """The kernel and the arguments that the back end launches."""
    launches = _Launches(triton_backend._kernels())
    monkeypatch.setattr(triton_backend, "_kernels", lambda: launches)
    monkeypatch.setattr(triton_backend, "_is_hopper", lambda device: case.capability == 90)
    monkeypatch.setattr(triton_backend, "_precision", lambda: case.precision)
    n, l = 2, case.tokens

    def tokens(channels: int) -> torch.Tensor:
        if case.layout == "nchw":
            return torch.empty(n, channels, l, dtype=case.dtype, device="meta").mT
        return torch.empty(n, l, channels, dtype=case.dtype, device="meta")

    query, value, lse = tokens(case.e), tokens(case.ev), torch.empty(n, l, device="meta")
    key = None if case.kernel == "feature_shared" else tokens(case.e)
    rest = None if case.dtype == torch.float32 else tokens(case.ev)
    if case.kernel == "forward":
        triton_backend.forward(
            ForwardCall(query, key, value, 0.1, False, tokens(case.ev), lse, rest)
        )
    else:
        grad_query = tokens(case.e) if "value" not in case.kernel else None
        grad_value = tokens(case.ev) if case.kernel == "value" else None
        triton_backend.backward(
            BackwardCall(
                value, query, key, value, value, lse, rest, 0.1, False, grad_query, None, grad_value
            )
        )
    position = 0 if case.kernel in ("forward", "value", "delta") else -1
    return launches.kept[position]


class Resources(NamedTuple):
    shared: int
    registers: int | None
    spilled: int | None


def _source(kernel: Any, arguments: dict[str, Any]) -> Any:
    """What Triton's launcher makes of the arguments: types, constants and alignments."""
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        name, given = parameter.name, arguments[parameter.name]
        aligned = True
        if parameter.is_constexpr or (isinstance(given, int) and given == 1):
            signature[name], constants[name] = "constexpr", given
            continue
        if isinstance(given, torch.Tensor):
            signature[name] = "*" + TYPES[given.dtype]
        elif isinstance(given, float):
            signature[name], aligned = "fp32", False
        else:
            signature[name] = "i32" if given < 2**31 else "i64"
            aligned = given % 16 == 0
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


@functools.cache
def _cuobjdump() -> str | None:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(path) if path.exists() else None


def _compile(case: Case, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Resources:
    import triton
    from triton.backends.compiler import GPUTarget

    kernel, arguments = _recorded(case, monkeypatch)
    options = {k: v for k, v in arguments.items() if k in ("num_warps", "num_stages")}
    built = triton.compile(
        _source(kernel, arguments),
        target=GPUTarget("cuda", case.capability, 32),
        options={**options, "enable_fp_fusion": arguments["enable_fp_fusion"]},
    )
    tool, usage = _cuobjdump(), None
    if tool is not None:
        cubin = folder / "kernel.cubin"
        cubin.write_bytes(built.asm["cubin"])
        listing = subprocess.run(
            [tool, "-res-usage", str(cubin)], capture_output=True, text=True, check=True
        ).stdout
        # Local memory of these kernels is nothing but spilled registers.
        usage = re.search(r"REG:(\d+) STACK:(\d+)", listing)
    registers, spilled = (None, None) if usage is None else map(int, usage.groups())
    return Resources(built.metadata.shared, registers, spilled)


def _limit(capability: int) -> int:
    hopper = capability == 90
    return configs.SHARED_MEMORY_HOPPER if hopper else configs.SHARED_MEMORY_PORTABLE


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
    used = _compile(case, monkeypatch, tmp_path)
    for name, number in used._asdict().items():
        record_property(name, number)
    print(case, used)
    assert used.shared <= _limit(case.capability)
    # The main job's size on the main GPU: no register may leave the chip.
    if case.capability == 90 and case.dtype == BF16 and case.e == case.ev == 256:
        assert used.spilled in (0, None)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("hopper", [True, False], ids=["hopper", "portable"])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_legal_call_has_a_tile(kernel: Any, hopper: bool, itemsize: int) -> None:
    for e, ev in itertools.product((*WIDTHS, 1, 3, 17, 130, 257, 511), repeat=2):
        tile = configs.choose(kernel, itemsize, hopper, e, ev)
        wide_e, wide_ev = configs.padded(e), configs.padded(ev)
        assert wide_e % tile.slice_e == 0
        assert wide_ev % tile.slice_v == 0
        assert (wide_ev if kernel in ("forward", "value") else wide_e) % tile.out == 0
        # the least that tensor cores multiply
        assert min(tile.rows, tile.cols, tile.slice_e, tile.slice_v, tile.out) >= 16
