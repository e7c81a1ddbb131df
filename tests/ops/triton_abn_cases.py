# SPDX-License-Identifier: MIT
"""The Triton kernels of in-place ABN, on the CPU in Triton's interpreter.

``test_triton_interpreter.py`` runs this file in a process of its own, because Triton reads
``TRITON_INTERPRET`` when the kernels are imported; pytest does not collect it by itself.
"""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from ocnet._env import triton_interpreted
from ocnet.ops.inplace_abn import configs, reference, triton_backend
from ocnet.ops.inplace_abn.problem import (
    ELU,
    IDENTITY,
    LEAKY_RELU,
    RELU,
    ForwardCall,
    Problem,
    ReduceCall,
    elu_floor,
)
from ocnet.ops.inplace_abn.triton_kernels.tiles import numbers
from ocnet.testing import assert_same_nonfinite
from tests.ops.triton_abn_calls import EPS, FP16, FP32, FP64, Case, Data, check, packed_of
from tests.ops.triton_abn_tiles import SHAPES, use_small_tiles

# NumPy warns of every inf - inf that the interpreter computes; a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

NAN, INF = float("nan"), float("inf")


def test_this_process_interprets() -> None:
    assert triton_interpreted()


# Every activation in both layouts, with and without each operand; sizes around every tile and every
# group of 16 bytes.
CASES = [
    Case((2, 3, 40), residual=True),
    Case((3, 2, 49), FP16, slope=True),
    Case((1, 1, 2)),
    Case((5, 4, 3), FP16, activation=ELU, param=1.0),
    Case((2, 1, 1031), activation=ELU, param=0.5, residual=True, signed=True),
    Case((2, 1, 2305), FP16, training=False, affine=False, residual=True),
    Case((2, 3, 64), FP16, activation=IDENTITY, signed=True),
    Case((3, 3, 21), activation=RELU, training=False),
    Case((2, 3, 21), activation=ELU, param=1.5, training=False, slope=False, residual=True),
    Case((77, 24), FP16, slope=True, residual=True),
    Case((77, 24), activation=ELU, param=1.0, residual=True),
    Case((150, 3), slope=True, signed=True),
    Case((9, 70), FP16, activation=IDENTITY, affine=False),
    Case((2, 5), residual=True),
    Case((33, 8), FP16, activation=RELU, training=False, residual=True),
    Case((40, 19), slope=True, training=False),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_calls(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, triton_backend, monkeypatch)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_tiles(monkeypatch)


TRAINED_AND_FROZEN = [*((shape, True) for shape in SHAPES), (SHAPES[0], False), (SHAPES[-1], False)]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("shape", "training"), TRAINED_AND_FROZEN, ids=str)
def test_many_parts(
    shape: tuple[int, ...], training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = len(shape) == 3
    dtype = FP16 if shape[1] % 2 else FP32
    case = Case(shape, dtype, slope=odd, residual=not odd, training=training)
    cuts = [configs.cut(Problem.of(Data(case).x), kernel) for kernel in configs.TABLES[4]]
    assert min(cut.parts for cut in cuts) > 1
    check(case, triton_backend, monkeypatch)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_stats(shape: tuple[int, ...]) -> None:
    data, c = Data(Case(shape)), shape[1]
    packed = packed_of(triton_backend, data.x, FP32).double()
    exact = packed_of(reference, data.x.double(), FP64)
    count = float(exact[-1])
    assert packed[-1] == count
    rough = 8 * torch.finfo(FP32).eps * count**0.5
    assert (packed - exact)[:c].abs().max() <= rough * data.x.abs().mean()
    assert ((packed - exact)[c:-1].abs() <= rough * exact[c:-1]).all()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("ranks", [1, 6])
@pytest.mark.parametrize("rows", [True, False], ids=["rows", "planes"])
def test_packed_statistics_of_ranks_that_may_be_empty(rows: bool, ranks: int) -> None:
    """Up to 4 ranks every program merges them, and more are merged before."""
    data = Data(Case((ranks * 4, 5) if rows else (ranks, 5, 4), mean=30.0))
    chunks = torch.chunk(data.x, ranks)
    empty = torch.zeros(2 * 5 + 1)
    packed = [empty, *(packed_of(triton_backend, chunk, FP32) for chunk in chunks), empty]
    actual = data.forward(triton_backend, torch.stack(packed))
    whole = data.double().forward(reference)
    for name in actual:
        # normalised numbers are as far off as the mean's last digits
        atol = 32 * torch.finfo(FP32).eps * 30
        torch.testing.assert_close(actual[name].double(), whole[name], rtol=1e-5, atol=atol)


def test_nothing_but_empty_ranks_is_no_nan() -> None:
    data = Data(Case((4, 5)))
    result = data.forward(triton_backend, torch.zeros(3, 11))
    assert (result["mean"] == 0).all()
    assert (result["var"] == 0).all()
    assert result["out"].isfinite().all()


@pytest.mark.parametrize("shape", [(4, 3, 900), (3000, 3)], ids=["planes", "rows"])
def test_large_means_and_steps_keep_the_variance(shape: tuple[int, ...]) -> None:
    """Raw sums of squares would lose it, and so would one shift for the whole channel."""
    eps = torch.finfo(FP32).eps
    for step in (0.0, 1000.0):
        data = Data(Case(shape, mean=1000.0))
        data.x[shape[0] // 2 :] -= step
        exact = packed_of(reference, data.x.double(), FP64)
        packed = packed_of(triton_backend, data.x, FP32).double()
        c, count = shape[1], exact[-1]
        assert packed[-1] == count
        # one rounding of the mean at each of a few merges
        assert (packed - exact)[:c].abs().max() <= 4 * eps * 1000
        # as many roundings as a chain of a thread and a tree over threads have, far from 1000 ** 2
        assert ((packed - exact)[c:-1].abs() <= 64 * eps * exact[c:-1]).all()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("shape", [(3, 2, 49), (30, 19)], ids=str)
def test_over_the_input_and_the_running_statistics(shape: tuple[int, ...]) -> None:
    data = Data(Case(shape, FP16, residual=True))
    apart = data.forward(triton_backend)
    given = data.residual, data.weight, data.bias, data.slope, None
    for moves in (True, False):
        x, mean, var = data.x.clone(), data.vector(), data.vector()
        running = [vector.clone() if moves else None for vector in data.running]
        call = ForwardCall(
            x, *given, *running, True, 0.1, EPS, *data.pointwise(), x, mean, var, *running
        )
        triton_backend.forward(call)
        found = {"out": x, "mean": mean, "var": var}
        if moves:
            found |= dict(zip(("new_mean", "new_var"), running, strict=True))
        assert all(torch.equal(found[name], apart[name]) for name in found)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("training", [True, False], ids=["train", "frozen"])
@pytest.mark.parametrize("shape", [(2, 2, 49), (20, 19)], ids=str)
def test_wanted_gradients_alone_are_the_same_bits(shape: tuple[int, ...], training: bool) -> None:
    data = Data(Case(shape, slope=True, residual=True, training=training))
    out, var = data.forward(triton_backend)["out"], data.running[1]
    together = data.backward(triton_backend, out, var, data.wanted(out))
    for name, grad in together.items():
        alone = {name: torch.full_like(grad, NAN)}
        data.backward(triton_backend, out, var, alone)
        assert torch.equal(alone[name], grad), name


@pytest.mark.parametrize("number", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 24), (20, 3)], ids=["planes", "rows"])
@pytest.mark.parametrize("activation", [LEAKY_RELU, ELU])
def test_nonfinite_numbers_stay_in_their_channel(
    shape: tuple[int, ...], number: float, activation: int
) -> None:
    data = Data(Case(shape, FP16, activation))
    clean = data.forward(triton_backend)
    for where in ("x", "out", "grad"):
        touched, out = Data(data.case), clean["out"].clone()
        target = out if where == "out" else getattr(touched, where)
        target[1, 1] = number
        results, wanted = (
            result.forward(backend) | result.backward(
                backend, out, clean["var"], result.wanted(out)
            )
            for result, backend in ((touched, triton_backend), (touched, reference))
        )  # fmt: skip
        for name, result in results.items():
            assert_same_nonfinite(f"{name}, {where}", result, wanted[name], tell_apart=False)


@pytest.mark.parametrize("shape", [(2, 3, 49), (20, 3)], ids=["planes", "rows"])
def test_slopes_without_an_inverse_make_their_channel_nan(shape: tuple[int, ...]) -> None:
    data = Data(Case(shape, slope=True, residual=True))
    clean = data.forward(triton_backend)["out"]
    assert data.slope is not None
    for bad in (0.0, -0.1, NAN, INF):
        data.slope[1] = bad
        result = data.forward(triton_backend)
        out = result["out"]
        grads = data.backward(triton_backend, out, result["var"], data.wanted(out))
        for name, found in {"out": out, **grads}.items():
            channels = found if found.dim() == 1 else found.movedim(1, 0).flatten(1)
            assert channels[1].isnan().all(), name
            assert channels[[0, 2]].isfinite().all(), name
        assert torch.equal(out.movedim(1, 0)[[0, 2]], clean.movedim(1, 0)[[0, 2]])


def test_the_least_slope_has_finite_gradients() -> None:
    """Where the inverse of the slope is infinite, what is stored as -0 is taken for 0."""
    data = Data(Case((2, 3, 49), slope=True))
    assert data.slope is not None
    data.slope.fill_(1e-42)
    result = data.forward(triton_backend)
    assert (result["out"].signbit() & (result["out"] == 0)).any()
    wanted = data.wanted(result["out"])
    for name, grad in data.backward(triton_backend, result["out"], result["var"], wanted).items():
        assert grad.isfinite().all(), name


@pytest.mark.parametrize("activation", [LEAKY_RELU, ELU])
def test_branch_is_the_sign_bit(activation: int) -> None:
    """Also of numbers that the dtype rounds to zero: half of these have a gradient times the slope."""
    case = Case((1, 1, 8), FP16, activation, 0.01, affine=False, training=False)
    data = Data(case)
    data.running = torch.zeros(1), torch.ones(1)
    data.x = torch.tensor([[[6e-8, -6e-8, 0.0, -0.0, 1.0, -1.0, 6e-6, -6e-6]]]).half()
    out = data.forward(triton_backend)["out"]
    # y is x - 0 = 0 where x is -0
    negative = torch.tensor([0, 1, 0, 0, 0, 1, 0, 1], dtype=torch.bool)
    assert torch.equal(torch.signbit(out).flatten(), negative)
    assert out[0, 0, 1] == 0
    data.grad = torch.ones_like(out)
    grads = data.backward(triton_backend, out, torch.ones(1), {"grad_x": torch.empty_like(out)})
    steep = torch.where(negative, 0.01, 1.0)
    if activation == ELU:
        steep = torch.where(negative, out.flatten().float() + 0.01, 1.0)
    torch.testing.assert_close(grads["grad_x"].flatten().float(), steep, rtol=2e-3, atol=0)


def test_elu_and_its_inverse_are_as_exact_as_float32() -> None:
    """Every binade from 2 ** -30 on, and the joint of the two formulas."""
    eps = torch.finfo(FP32).eps
    steps = torch.cat([torch.logspace(-9, 1.2, 400), torch.linspace(0.2, 0.8, 300)])
    data = Data(Case((1, 1, steps.numel()), FP32, ELU, 1.0, affine=False, training=False))
    data.x = -steps[None, None].float()
    data.running = torch.zeros(1), torch.full((1,), 1 - EPS)
    assert data.running[1] + torch.tensor(EPS) == 1
    out = data.forward(triton_backend)["out"]
    wanted = torch.expm1(data.x.double())
    assert ((out.double() - wanted) / wanted).abs().max() <= 2e-7
    # One number in each channel of rows: the sums are dy and log1p(z) * dy.
    z = out[0].clamp(min=-1 + elu_floor(FP32))
    sums = torch.empty(2, steps.numel())
    maps = (z, None, 1 / (1 + z), None, None, None)
    pointwise = (None, *data.pointwise(), sums, None, None, None)
    triton_backend.reduce(ReduceCall(*maps, *pointwise))
    inverse = sums[1].double() / sums[0].double()
    wanted = torch.log1p(z.double())[0]
    # one rounding of the product more
    assert ((inverse - wanted) / wanted).abs().max() <= 2e-7 + eps


def test_saturated_elu_is_taken_to_be_as_low_as_its_dtype_tells() -> None:
    """So many numbers that it is not the bound of normalised ones that keeps the inverse finite."""
    for dtype in (FP16, FP32):
        data = Data(Case((1, 1, 400), dtype, ELU, 1.0, affine=False))
        out = torch.full_like(data.x, -1.0)
        out[..., 4:] = data.x[..., 4:].clamp(min=-0.5)
        actual, wanted = (
            data.backward(backend, out, torch.ones(1), data.wanted(out))["grad_x"]
            for backend in (triton_backend, reference)
        )
        atol = float(4 * torch.finfo(dtype).eps * wanted.abs().max())
        torch.testing.assert_close(actual, wanted, rtol=0, atol=atol)


@triton.jit
def offsets_kernel(
    p_offsets, i_tile, i_c, N, C, L, GROUPS, BLOCKS, WIDE: tl.constexpr, BA: tl.constexpr,
    BB: tl.constexpr, ROWS: tl.constexpr, ENDS: tl.constexpr,
):  # fmt: skip
    o_tile, m_tile, count = numbers(i_tile, i_c, N, C, L, GROUPS, BLOCKS, WIDE, BA, BB, ROWS, ENDS)
    o_out = tl.arange(0, BA)[:, None] * BB + tl.arange(0, BB)[None, :]
    tl.store(p_offsets + o_out, tl.where(m_tile, o_tile, -1))
    tl.store(p_offsets + BA * BB, count.to(tl.int64))


@pytest.mark.parametrize("rows", [True, False], ids=["rows", "planes"])
def test_offsets_beyond_32_bits(rows: bool) -> None:
    """The last tile of a channel of maps that no memory here holds."""
    n, c, l = (1, 67, 2**31 + 5) if rows else (70001, 513, 97 * 97)
    problem = Problem(torch.device("cpu"), FP16, n, c, l, rows)
    cut = configs.cut(problem, "forward").arguments
    height, width = cut["BA"], cut["BB"]
    i_c = -(-c // cut["BC"]) - 1

    def offsets(i_tile: int, height: int, width: int, ends: bool) -> tuple[Tensor, int]:
        found = torch.empty(height * width + 1, dtype=torch.int64)
        sizes = n, c, l, cut["GROUPS"], cut["BLOCKS"]
        offsets_kernel[(1,)](found, i_tile, i_c, *sizes, 8, height, width, rows, ends)
        return found[:-1][found[:-1] >= 0], int(found[-1])

    last, count = offsets(cut["TILES"] - 1, height, width, False)
    if rows:
        first = (cut["TILES"] - 1) * height
        wanted = torch.arange(first, l)[:, None] * c + torch.arange(i_c * width, c)[None, :]
        assert torch.equal(last, wanted.flatten())
        assert count == l - first
        return
    start = ((n - 1) * c + i_c) * l
    lead, whole = -start % 8, (l - 7) // 8 * 8
    first = (cut["BLOCKS"] - 1) * width
    assert start > 2**31
    assert torch.equal(last, start + lead + torch.arange(first, whole))
    assert count == whole - first
    ends, count = offsets(n - 1, 1, 16, True)
    wanted = [*range(lead), *range(lead + whole, l)]
    assert ends.tolist() == [start + position for position in wanted]
    assert count == len(wanted)


def test_refusals_in_the_interpreter() -> None:
    def problem(dtype: torch.dtype, device: str = "cpu") -> Problem:
        return Problem(torch.device(device), dtype, 1, 4, 8, False)

    assert triton_backend.supports(problem(FP32)).ok
    assert triton_backend.supports(problem(FP16)).ok
    for refused, word in (
        (problem(torch.bfloat16), "bfloat16"),
        (problem(FP64), "float64"),
        (problem(FP32, "cuda"), "cuda"),
    ):
        support = triton_backend.supports(refused)
        assert not support.ok
        assert word in support.reason
