# SPDX-License-Identifier: MIT
"""What is special to the C++ CPU kernels of in-place ABN: instruction sets, threads, chunks, bits.

What every back end must do is in test_inplace_abn.py.
"""

import ctypes
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ocnet.ops import _extension
from ocnet.ops.inplace_abn.problem import ELU, IDENTITY, LEAKY_RELU, RELU, elu_floor
from tests.ops.abn_calls import (
    Call,
    Results,
    assert_same_bits,
    assert_within_rounding,
    backward_sizes,
    draw,
    every_gradient,
    exact_backward,
    exact_forward,
    forward_sizes,
    run_backward,
    run_backward_in_steps,
    run_forward,
)

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("_cpu_kernels")]

NAN, INF = float("nan"), float("inf")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SETS = ["portable", "avx2", "avx512"]
# Numbers and rows of a chunk, and numbers of the longest step (csrc/cpu/inplace_abn_layout.h).
CHUNK, ROWS, STEP = 8192, 256, 32


@pytest.fixture(params=SETS)
def _instructions(request: pytest.FixtureRequest) -> Iterator[None]:
    """The kernels use this instruction set, though the processor may have a wider one."""
    limit = ctypes.CDLL(str(_extension.load("cpu").path)).ocnet_cpu_limit_instructions
    wanted = SETS.index(request.param)
    if limit(wanted) == wanted:
        yield
    limit(len(SETS))
    if limit(len(SETS)) < wanted:
        pytest.skip(f"the processor has no {request.param}")


@pytest.fixture
def assume_cache() -> Iterator[Callable[[int], None]]:
    """Tell the kernels how many bytes the largest cache holds."""
    assume = ctypes.CDLL(str(_extension.load("cpu").path)).ocnet_cpu_assume_cache
    assume.argtypes = [ctypes.c_int64]
    yield assume
    assume(-1)


def ops() -> Any:
    return torch.ops.ocnet_cpu


def both(call: Call, **how: Any) -> Results:
    """Return the results of a forward and a backward pass."""
    tensors = draw(call)
    forward = run_forward(ops(), call, tensors, **how)
    var = forward.get("var", tensors.running_var)
    return forward | run_backward(ops(), call, tensors, forward["out"], var, every_gradient(call))


def check(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, count = draw(call), torch.Size(call.shape).numel() // call.shape[1]
    forward, exact = run_forward(ops(), call, tensors), exact_forward(call, tensors)
    assert_within_rounding(forward, exact, forward_sizes(call, tensors, exact), count)
    given = forward["out"], forward.get("var", tensors.running_var)
    backward = run_backward(ops(), call, tensors, *given, every_gradient(call))
    exact = exact_backward(call, tensors, *given, monkeypatch)
    sizes = backward_sizes(call, tensors, *given, exact)
    assert_within_rounding(backward, exact, sizes, count)


KINDS = {
    "identity": {"activation": IDENTITY},
    "leaky": {"residual": True},
    "prelu": {"prelu": True, "signed": True},
    "elu": {"activation": ELU, "param": 1.25},
    "elu_frozen": {"activation": ELU, "param": 0.75, "training": False, "residual": True},
    "relu": {"activation": RELU, "training": False},
    "prelu_frozen": {"prelu": True, "training": False, "residual": True},
    "plain": {"affine": False},
}


@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(3, 5, 2), (5, 3, 49), (2, 3, 67), (300, 3), (37, 21), (45, 70)], ids=str
)
def test_every_kernel_of_every_instruction_set(
    shape: tuple[int, ...], dtype: torch.dtype, kind: str, monkeypatch
) -> None:
    check(Call(shape, dtype, **KINDS[kind]), monkeypatch)


def around(*sizes: int) -> list[int]:
    return sorted({size + step for size in sizes for step in (-1, 0, 1)})


@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("length", around(4, 8, 16, STEP, 2 * STEP, 4 * STEP))
def test_lengths_around_vectors(length: int, monkeypatch) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check(Call((3, 2, length), dtype), monkeypatch)
        check(Call((11, length), dtype), monkeypatch)


@pytest.mark.parametrize(
    "shape",
    [
        *((2, 2, length) for length in around(CHUNK // 2, CHUNK, 2 * CHUNK)),
        *((images, 2, CHUNK // 4) for images in around(4, 8)),
        *((rows, 6) for rows in around(ROWS, 2 * ROWS)),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sizes_around_chunks(dtype: torch.dtype, shape: tuple[int, ...], monkeypatch) -> None:
    check(Call(shape, dtype), monkeypatch)


# Of planes: few and many channels, small and large ones. Of rows: in one group and in several, of
# which the last has a few columns more.
MANY = [(4, 3, 9000), (8, 130, 49), (2, 40, 1300), (1200, 70), (70, 1030), (300, 452), (9000, 5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", MANY, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_same_bits_for_any_number_of_threads(training: bool, shape, dtype) -> None:
    call = Call(shape, dtype, training=training, residual=True, prelu=True)
    expected = both(call)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        for _ in range(2):
            assert_same_bits(both(call), expected)


@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 2, 5), (3, 2, 77), (9, 3), (9, 77), (9, 128)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_in_place_and_out_of_place_are_the_same(training: bool, shape, dtype) -> None:
    """What is left of a line after whole steps is computed from numbers that are done already."""
    call = Call(shape, dtype, training=training, residual=True)
    assert_same_bits(both(call, inplace=True, moves=training), both(call))


@pytest.mark.parametrize("shape", [(5, 9, 49), (700, 130)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_two_steps_and_one_are_the_same(training: bool, shape: tuple[int, ...]) -> None:
    call = Call(shape, torch.float32, training=training, residual=True, prelu=True)
    tensors = draw(call)
    forward = run_forward(ops(), call, tensors)
    given = forward["out"], forward.get("var", tensors.running_var)
    expected = run_backward(ops(), call, tensors, *given, every_gradient(call))
    steps = run_backward_in_steps(ops(), call, tensors, *given, every_gradient(call))
    assert_same_bits(steps, expected)
    for name in every_gradient(call):
        alone = run_backward(ops(), call, tensors, *given, [name])
        assert_same_bits(alone, {name: expected[name]})


@pytest.mark.parametrize("shape", [(6, 5, 49), (600, 70)], ids=str)
def test_statistics_of_parts_are_merged(shape: tuple[int, ...]) -> None:
    call = Call(shape, mean=3.0)
    tensors, c = draw(call), shape[1]
    packed = torch.empty(4, 2 * c + 1)
    # The second part has nothing in it: whatever else it says is of no interest.
    packed[1] = NAN
    packed[1, -1] = 0
    for part, x in zip((0, 2, 3), tensors.x.split(shape[0] // 3), strict=True):
        ops().inplace_abn_stats(x, packed[part])
    merged = run_forward(ops(), call, tensors, packed=packed)
    exact = exact_forward(call, tensors)
    sizes = forward_sizes(call, tensors, exact)
    assert_within_rounding(merged, exact, sizes, tensors.x.numel() // c)


@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 64), (2, 3, 224), (9, 64), (37, 160)], ids=str)
def test_past_the_caches_are_the_same_numbers(
    shape: tuple[int, ...], dtype: torch.dtype, kind: str, assume_cache: Callable[[int], None]
) -> None:
    call = Call(shape, dtype, **KINDS[kind])
    expected = both(call)
    assume_cache(0)
    assert_same_bits(both(call), expected)


def at_address(x: Tensor, offset: int) -> Tensor:
    """Return a copy that begins so many bytes behind the beginning of a page."""
    page, size = 4096, x.element_size()
    memory = x.new_empty(x.numel() + 2 * page // size)
    first = (offset - memory.data_ptr()) % page // size
    return memory[first : first + x.numel()].view(x.shape).copy_(x)


@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(37, 2048), (300, 1024), (4, 3, 1024)], ids=str)
def test_numbers_do_not_depend_on_addresses(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """How rows are taken together does, where lines of maps get into each other's way."""
    call = Call(shape, dtype, residual=True)
    tensors = draw(call)

    def results(*offsets: int) -> Results:
        maps = (tensors.x, tensors.residual, tensors.grad_out)
        x, residual, grad_out = map(at_address, maps, offsets)
        placed = dataclasses.replace(tensors, x=x, residual=residual, grad_out=grad_out)
        forward = run_forward(ops(), call, placed)
        given = at_address(forward["out"], offsets[0]), forward["var"]
        return forward | run_backward(ops(), call, placed, *given, every_gradient(call))

    expected = results(0, 512, 1024)
    for offsets in ((0, 0, 0), (64, 64, 1984)):
        assert_same_bits(results(*offsets), expected)


# --- accuracy ---


def million(rows: bool, values: Tensor) -> Tensor:
    """Return a map of 2 ** 20 numbers for each channel."""
    return values.mT.contiguous() if rows else values.view(2, 4, -1).transpose(0, 1).contiguous()


@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("rows", [False, True], ids=["planes", "rows"])
@pytest.mark.parametrize("mean", [0.0, 1000.0, -30000.0])
def test_a_million_numbers(mean: float, rows: bool) -> None:
    values = torch.randn(2, 2**20) + mean
    packed = torch.empty(5)
    ops().inplace_abn_stats(million(rows, values), packed)
    exact = values.double()
    count = exact.shape[1]
    # A rounding of the result, and sums of squares whose chains are at most 4 * 32 additions long:
    # their errors are of one eps at the most, and independent of those of a hundred other chains.
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(
        packed[2:4].double() / count, exact.var(1, correction=0), rtol=eps, atol=0
    )
    torch.testing.assert_close(packed[:2].double(), exact.mean(1), rtol=eps / 2, atol=1e-8)
    assert packed[4] == count


@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("rows", [False, True], ids=["planes", "rows"])
def test_a_beginning_unlike_the_rest(rows: bool) -> None:
    """The number that deviations are taken from is the mean of what is least like all others."""
    values = torch.randn(2, 2**20) + 1000
    values.view(2, -1, 16 if rows else 512)[:, ::16] = 0.0
    packed = torch.empty(5)
    ops().inplace_abn_stats(million(rows, values), packed)
    exact = values.double()
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(
        packed[2:4].double() / exact.shape[1], exact.var(1, correction=0), rtol=16 * eps, atol=0
    )
    torch.testing.assert_close(packed[:2].double(), exact.mean(1), rtol=16 * eps, atol=0)


@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("rows", [False, True], ids=["planes", "rows"])
def test_sums_of_a_million_numbers(rows: bool) -> None:
    """No worse than torch's own batch norm: a rounding of each result."""
    x, dz = (million(rows, torch.randn(2, 2**20) + mean) for mean in (0.5, 0.1))
    c, count = x.shape[1], 2.0**20
    sums, grad_bias = torch.empty(2, c), torch.empty(c)
    ops().inplace_abn_bwd_reduce(
        x, None, dz, None, None, None, torch.tensor([count]), 1e-5, LEAKY_RELU, 0.25, False,
        sums, None, grad_bias, None,
    )  # fmt: skip
    others = (0,) if rows else (0, 2)
    y, dy = (torch.where(x < 0, t.double() * f, t.double()) for t, f in ((x, 4.0), (dz, 0.25)))
    eps = torch.finfo(torch.float32).eps
    for result, terms in ((sums[0], dy), (sums[1], y * dy), (grad_bias, dy)):
        # Each term is rounded, and so are additions of terms of either sign in chains of at most
        # 128: errors that are independent grow as the root of the sum of their squares.
        floor = 4 * eps * float(terms.square().sum().sqrt())
        error = (result.double() - terms.sum(others)).abs()
        assert bool((error <= eps * terms.sum(others).abs() + floor).all()), error


def units(result: Tensor, exact: Tensor) -> float:
    """Return the largest error in units of the last place of the exact numbers."""
    place = torch.frexp(exact.abs()).exponent.double() - 1
    return float(((result.double() - exact) / 2**place).abs().max()) / torch.finfo(result.dtype).eps


@pytest.mark.usefixtures("_instructions")
def test_elu_within_two_units_of_the_last_place() -> None:
    half = torch.full((1,), 0.5)
    x = -torch.cat([torch.logspace(-37, 2, 200_001), torch.linspace(0, 20, 200_001)])
    x, out = x.view(1, 1, -1), torch.empty(1, 1, x.numel())
    # The variance and what is added to it make 1: the map is normalised already.
    ops().inplace_abn_fwd(
        x, None, None, None, None, None, torch.zeros(1), half, False, 0.1, 0.5, 1e-5, ELU, 1.0,
        False, out, None, None, None, None,
    )  # fmt: skip
    assert units(out, torch.expm1(x.double())) <= 2
    assert out.signbit().all()

    below = 1 - torch.logspace(-7.2, -1, 100_001, dtype=torch.float64)
    z = -torch.cat([torch.logspace(-37, -1e-4, 200_001).double(), below]).float().view(1, 1, -1)
    # Of sums 0 and -count, and without a gradient, what is left of the formula is B * yc = yc.
    count, grad_x = 2.0**40, torch.empty_like(z)
    ops().inplace_abn_bwd_apply(
        z, None, torch.zeros_like(z), None, None, None, half, torch.tensor([[0.0], [-count]]),
        torch.tensor([count]), 0.5, 1e-5, ELU, 1.0, False, grad_x, None,
    )  # fmt: skip
    lowest = -1 + elu_floor(torch.float32)
    assert units(grad_x, torch.log1p(z.double().clamp(min=lowest))) <= 2


# --- bits ---


def frozen(x: Tensor, activation: int, param: float, weight: Tensor | None = None) -> Tensor:
    """Apply an activation; the map is normalised already."""
    c, out = x.shape[1], torch.empty_like(x)
    half = torch.full((c,), 0.5)
    ops().inplace_abn_fwd(
        x, None, weight, None, None, None, torch.zeros(c), half, False, 0.1, 0.5, 1e-5,
        activation, param, False, out, None, None, None, None,
    )  # fmt: skip
    return out


def all_bits(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, 1, -1)


@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_number_is_read_and_written_as_it_is(dtype: torch.dtype) -> None:
    x = all_bits(dtype)
    out = frozen(x, IDENTITY, 0.0)
    assert torch.equal(out.isnan(), x.isnan())
    assert torch.equal(out.signbit()[~x.isnan()], x.signbit()[~x.isnan()])
    # Subnormal numbers of float32 become 0, and bfloat16 has the same.
    same = ~x.isnan() & ((x == 0) | (x.float().abs() >= torch.finfo(torch.float32).smallest_normal))
    assert torch.equal(out[same].view(torch.int16), x[same].view(torch.int16))


@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("slope", [1.5, 0.3, 1e-3, 1e-6, 1e-9])
def test_rounding_of_16_bit_numbers_keeps_the_sign(slope: float, dtype: torch.dtype) -> None:
    """The sign bit of the output tells the branch, though rounding may leave nothing else."""
    x = all_bits(dtype)
    x = x[x.isfinite() & (x.float().abs() >= torch.finfo(torch.float32).smallest_normal)]
    x = x.view(1, 1, -1)
    out = frozen(x, LEAKY_RELU, slope)
    wanted = torch.where(x < 0, x.float() * torch.tensor(slope), x.float())
    assert torch.equal(out.signbit(), x < 0)
    normal = wanted.abs() >= torch.finfo(torch.float32).smallest_normal
    assert torch.equal(out[normal], wanted[normal].to(dtype))


@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7F800001], ids=hex)
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
def test_no_nan_is_rounded_to_a_number(dtype: torch.dtype, bits: int) -> None:
    weight = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    assert weight.isnan()
    assert frozen(torch.randn(3, 1, 70).to(dtype), LEAKY_RELU, 0.25, weight).isnan().all()


@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("number", [NAN, INF])
@pytest.mark.parametrize("shape", [(3, 4, 77), (77, 43)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_in_its_channel(dtype: torch.dtype, shape, number: float) -> None:
    call = Call(shape, dtype)
    for which in ("x", "grad_out"):
        tensors = draw(call)
        # The last number of its line.
        getattr(tensors, which)[1, -1].view(-1)[-1] = number
        forward = run_forward(ops(), call, tensors)
        given = forward["out"], forward["var"]
        backward = run_backward(ops(), call, tensors, *given, every_gradient(call))
        results = backward if which == "grad_out" else forward | backward
        for name, result in results.items():
            channels = result.movedim(1, 0) if result.dim() > 1 else result
            assert channels[:-1].isfinite().all(), name
            if name not in ("out", "grad_bias"):
                assert not channels[-1].isfinite().any(), name


# --- refusals ---


def test_refusals() -> None:
    call = Call((3, 4, 5))
    t = draw(call)
    forward = run_forward(ops(), call, t)
    out, var, wrong = forward["out"], forward["var"], torch.empty(3)

    def stats(x: Tensor, packed: Tensor) -> None:
        ops().inplace_abn_stats(x, packed)

    with pytest.raises(RuntimeError, match=r"stats: packed must have shape \(9\), got \(3\)"):
        stats(t.x, wrong)
    with pytest.raises(RuntimeError, match="stats: x must have 3 dimensions"):
        stats(t.x[None], torch.empty(9))
    with pytest.raises(RuntimeError, match="stats: x must be contiguous"):
        stats(t.x.transpose(0, 2), torch.empty(9))
    with pytest.raises(RuntimeError, match="stats: x must have dtype"):
        stats(t.x.int(), torch.empty(9))
    with pytest.raises(RuntimeError, match="stats: x must have sizes from 1"):
        stats(t.x[:0], torch.empty(9))
    with pytest.raises(RuntimeError, match="stats: packed must have dtype Float, got Double"):
        stats(t.x, torch.empty(9, dtype=torch.float64))

    def fwd(x: Tensor, residual=None, weight=None, mean=None, activation=1, to=out) -> None:
        ops().inplace_abn_fwd(
            x, residual, weight, None, None, None, mean, mean, False, 0.1, 1e-5, 1e-5, activation,
            0.1, False, to, None, None, None, None,
        )  # fmt: skip

    with pytest.raises(RuntimeError, match="fwd: running_mean must be given where training is"):
        fwd(t.x)
    with pytest.raises(RuntimeError, match="fwd: residual must have shape"):
        fwd(t.x, residual=t.x[:1])
    with pytest.raises(RuntimeError, match="fwd: weight must have shape"):
        fwd(t.x, weight=wrong)
    with pytest.raises(RuntimeError, match="fwd: activation must be a code from 0 to 3, got 4"):
        fwd(t.x, mean=var, activation=4)
    with pytest.raises(RuntimeError, match="fwd: out must have dtype"):
        fwd(t.x, mean=var, to=out.double())

    def bwd(grad_out: Tensor, weight=None, activation=1, vectors=(None, None, None)) -> None:
        ops().inplace_abn_bwd(
            out, None, grad_out, weight, None, None, var, True, 1e-5, 1e-5, activation, 0.1, False,
            None, None, *vectors,
        )  # fmt: skip

    with pytest.raises(RuntimeError, match="bwd: grad_out must have 3 dimensions"):
        bwd(t.grad_out[0])
    with pytest.raises(RuntimeError, match="bwd: weight must be given with grad_weight"):
        bwd(t.grad_out, vectors=(torch.empty(4), None, None))
    with pytest.raises(RuntimeError, match="bwd: slope must be given"):
        bwd(t.grad_out, vectors=(None, None, torch.empty(4)))
    with pytest.raises(RuntimeError, match="bwd: activation must have an inverse where"):
        bwd(t.grad_out, activation=RELU)
