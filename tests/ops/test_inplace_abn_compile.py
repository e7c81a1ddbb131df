# SPDX-License-Identifier: MIT
"""Every Triton kernel of in-place ABN compiles, without a GPU: wide accesses, and nothing spills."""

import itertools
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ocnet._env import triton_interpreted
from ocnet.ops.inplace_abn import configs, triton_backend
from ocnet.ops.inplace_abn.problem import (
    ELU,
    IDENTITY,
    LEAKY_RELU,
    RELU,
    BackwardCall,
    ForwardCall,
    Problem,
)
from tests.ops.triton_compiling import TYPES, Launches, compile_launch

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(triton_interpreted(), reason="TRITON_INTERPRET=1: kernels do not compile"),
]

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# Wide planes that are whole groups of 16 bytes and that are not; narrow ones; rows of both kinds.
WIDE, ODD, NARROW = (32, 64, 112 * 112), (8, 512, 97 * 97), (32, 2048, 49)
ROWS, ODD_ROWS = (8 * 97 * 97, 512), (4096, 19)
MAPS = ("p_x", "p_out", "p_residual", "p_grad_out", "p_grad_x", "p_grad_residual")
SHAPES = (WIDE, ODD, NARROW, ROWS, ODD_ROWS)


class Case(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype
    capability: int = 90
    activation: int = LEAKY_RELU
    everything: bool = False
    training: bool = True

    def __str__(self) -> str:
        words = ["x".join(map(str, self.shape)), TYPES[self.dtype], f"sm{self.capability}"]
        words += [f"act{self.activation}", "train" if self.training else "frozen"]
        return "-".join([*words, "everything"] if self.everything else words)


# Every shape and dtype, both GPUs, all operands at once and hardly any.
COVERING = [
    Case(WIDE, BF16),
    Case(WIDE, FP32, 80, everything=True),
    Case(ODD, BF16, 80, everything=True),
    Case(ODD, FP16, activation=ELU, everything=True),
    Case(NARROW, FP16, 80, IDENTITY),
    Case(ROWS, BF16, 90, everything=True),
    Case(ROWS, FP32, 80, ELU, training=False, everything=True),
    Case(ODD_ROWS, FP16, 80),
    Case(ODD, BF16, 90, RELU, training=False),
    # sizes of 1 become constants, and those from 2 ** 31 on 64-bit arguments
    Case((1, 1), FP32, 80),
    Case((1, 2, 2**31 + 1), BF16, 80),
]
MORE = (*SHAPES, (3, 7, 1000), (16, 40, 784), (50, 3, 5), (2, 6, 4), (2**31 + 1, 24))
EVERYTHING_ELSE = [
    Case(shape, dtype, capability, activation, True, training)
    for shape, dtype, capability in itertools.product(MORE, (BF16, FP16, FP32), (80, 90))
    for activation, training in ((ELU, True), (LEAKY_RELU, False))
]


def _recorded(case: Case, patch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """The kernels and the arguments that the back end launches, forward and then backward."""
    launches = Launches(triton_backend._kernels())
    patch.setattr(triton_backend, "_kernels", lambda: launches)

    def a_map(wanted: bool = True) -> Tensor | None:
        return torch.empty(case.shape, dtype=case.dtype, device="meta") if wanted else None

    def vector(wanted: bool = True) -> Tensor | None:
        return torch.empty(case.shape[1], device="meta") if wanted else None

    x, out, more, training = a_map(), a_map(), case.everything, case.training
    assert x is not None
    assert out is not None
    slope = vector(more and case.activation == LEAKY_RELU)
    operands = a_map(more), *(vector(more) for _ in range(2)), slope
    pointwise = 1e-5, case.activation, 0.1, more
    statistics = (vector(training), vector(training), *(vector(training and more) for _ in "ab"))
    triton_backend.forward(
        ForwardCall(
            x,
            *operands,
            None,
            vector(),
            vector(),
            training,
            0.1,
            1e-5,
            *pointwise,
            out,
            *statistics,
        )
    )
    residual, *vectors = operands
    call = BackwardCall(
        out, residual, x, *vectors, torch.empty(case.shape[1], device="meta"), training, 1e-5,
        *pointwise, a_map(), a_map(more), *(vector(v is not None) for v in vectors),
    )  # fmt: skip
    triton_backend.backward(call)
    return launches.kept


def _accesses(assembly: str, kind: str, width: str) -> int:
    return len(re.findall(rf"\b{kind}\.global[.\w:]*\.{width}\b", assembly))


def _assert_wide(arguments: dict[str, Any], assembly: str) -> None:
    """Assert that whole groups of a map are read and written 16 bytes at a time, and no other way."""
    present = [name for name in MAPS if arguments.get(name) is not None]
    written = [n for n in present if n.startswith("p_grad_") and n != "p_grad_out"]
    if "p_x" in present:
        written = [name for name in present if name == "p_out"]
    threads = 32 * arguments["num_warps"]
    # of a tile, by each thread
    groups = arguments["BA"] * arguments["BB"] // (threads * arguments["WIDE"])
    if groups == 0:
        return
    reads, itemsize = len(present) - len(written), 16 // arguments["WIDE"]
    # Vectors of channels are read so too.
    assert _accesses(assembly, "ld", r"v4\.[bu]32") >= groups * reads
    assert _accesses(assembly, "st", r"v4\.[bu]32") == groups * len(written)
    if itemsize == 2 and not arguments["ENDS"]:
        # The statistics' first number alone is read by itself, which some versions write down twice.
        assert _accesses(assembly, "ld", "[bu]16") <= 2 * (
            "p_x" in present and reads == len(present)
        )
        assert _accesses(assembly, "st", "[bu]16") == 0


def _check(case: Case, patch: pytest.MonkeyPatch, folder: Path, record_property: Any) -> None:
    launches = _recorded(case, patch)
    assert len(launches) >= (4 if case.training else 2)
    for kernel, arguments in launches:
        used = compile_launch((kernel, arguments), case.capability, folder)
        for name, number in used._asdict().items():
            record_property(f"{kernel.__name__} {name}", number)
        print(case, kernel.__name__, used[:-1])
        assert used.shared <= configs.SHARED_MEMORY
        assert not used.spilled
        whole = len(case.shape) == 3 or case.shape[1] % arguments.get("WIDE", 1) == 0
        if "WIDE" in arguments and whole:
            _assert_wide(arguments, used.assembly)


@pytest.mark.parametrize("case", COVERING, ids=str)
def test_kernels_compile_and_fit(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record_property: Any
) -> None:
    _check(case, monkeypatch, tmp_path, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("case", EVERYTHING_ELSE, ids=str)
def test_all_kernels_compile_and_fit(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record_property: Any
) -> None:
    _check(case, monkeypatch, tmp_path, record_property)


def test_branches_that_nan_takes_keep_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The clamps are those minima and maxima of the GPU that pass NaN on."""
    launches = _recorded(Case(WIDE, BF16, activation=ELU, everything=True), monkeypatch)
    for launch in launches:
        if launch[0].__name__ == "inplace_abn_bwd_kernel":
            assembly = compile_launch(launch, 80, tmp_path).assembly
            assert {"max.NaN.f32", "min.NaN.f32"} <= set(assembly.split())


def _problem(shape: tuple[int, ...], dtype: torch.dtype) -> Problem:
    return Problem.of(torch.empty(shape, dtype=dtype, device="meta"))


@pytest.mark.parametrize("kernel", ["stats", "forward", "reduce", "apply"])
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_cuts_cover_every_map_once(kernel: configs.Kernel, dtype: torch.dtype) -> None:
    planes = itertools.product((1, 3, 64), (1, 7, 2048), (2, 5, 7, 8, 15, 49, 64, 784, 9409, 10**6))
    rows = itertools.product((1, 2, 255, 75272, 2**31 + 1), (1, 3, 8, 24, 100, 512, 2048))
    for shape in (*planes, *rows):
        problem = _problem(shape, dtype)
        cut = configs.cut(problem, kernel)
        given = cut.arguments
        wide, lines = given["WIDE"], given["BA"] * given["TILES"]
        assert given["C_OVER"] * given["FACTOR"] == problem.C
        assert (cut.parts - 1) * given["EACH"] < given["TILES"] <= cut.parts * given["EACH"]
        assert cut.grid == (cut.parts * -(-problem.C // given["BC"]),)
        # powers of two
        assert all(given[name].bit_count() == 1 for name in ("BA", "BB", "BC", "BE", "num_warps"))
        if problem.rows:
            assert lines - given["BA"] < problem.L <= lines
            assert given["BB"] == given["BC"]
            continue
        assert lines - given["BA"] < problem.N * given["BLOCKS"] <= lines
        whole = given["GROUPS"] * wide
        assert whole <= given["BLOCKS"] * given["BB"]
        # What is not in groups fits what is read of the ends, wherever a plane begins.
        assert given["ENDS"] == (whole < problem.L)
        assert problem.L - whole < 2 * wide
        assert all(whole <= max(problem.L - lead, 0) for lead in range(wide * given["ENDS"]))


def test_parts_that_leave_sums_are_few() -> None:
    for shape in (WIDE, (1, 1, 10**8), (10**8, 64), (10**6, 4)):
        for kernel in ("stats", "reduce"):
            assert configs.cut(_problem(shape, BF16), kernel).parts <= configs.MOST_PARTS
