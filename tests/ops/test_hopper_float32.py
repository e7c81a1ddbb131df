# SPDX-License-Identifier: MIT
"""Strict float32 on Hopper's own instructions: three bfloat16 parts of each number, at the native op."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ocnet.ops import Grid, _hopper
from ocnet.ops.oc_attention import cuda_backend
from ocnet.ops.oc_attention.problem import ForwardCall, Problem
from tests.ops.test_cuda_forward import Result, assert_within_gate, error, formula
from tests.ops.test_cuda_kernels import INF, NAN, Call, make_call, place

pytestmark = pytest.mark.native

LAYOUTS = ("channels_last", "nchw", "gaps")
GATE = 2e-6
only_emulated = pytest.mark.parametrize("subject", ["emulated-hopper"], indirect=True)


@pytest.fixture(params=["emulated-hopper", pytest.param("hopper", marks=pytest.mark.gpu)])
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def op(subject: str, backend: str, device: str) -> Callable[..., None]:
    half = "emulated" if subject == "emulated-hopper" else "cuda"
    return getattr(torch.ops, f"ocnet_{half}").oc_attention_hopper_fwd


@pytest.fixture
def forward(op, device: str) -> Callable[..., Result]:
    def forward(call: Call, layout: str = "channels_last") -> Result:
        query, key, value = (None if t is None else place(t, layout, device) for t in call[:3])
        out = place(torch.full(call.grad_out.shape, NAN), layout, device)
        lse = torch.full(call.query.shape[:2], NAN, device=device)
        op(query, key, value, call.scale, out, lse, None)
        return Result(out.cpu(), lse.cpu(), None)

    return forward


def kernels_of(emulator) -> list[str]:
    return [launch.kernel.split("<")[0].split("::")[-1] for launch in emulator.launches()]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("keys", [None, 37], ids=["shared", "separate"])
def test_accuracy_gates(forward, layout: str, keys: int | None) -> None:
    """Tails of queries, keys and channels; two images."""
    call = make_call(2, 70, keys, 70, 37)
    assert_within_gate(forward(call, layout), call, False)


# Channels, and the tile: consumer warpgroups, room for channels and values, keys of a step, buffers.
TILES = [
    ((24, 20), (2, 64, 64, 64, 2)),
    ((24, 65), (2, 128, 128, 64, 1)),
    ((65, 24), (2, 128, 128, 64, 1)),
    ((128, 130), (2, 128, 256, 32, 1)),
    ((200, 70), (1, 256, 128, 48, 1)),
    ((256, 256), (1, 256, 256, 32, 1)),
]


@only_emulated
@pytest.mark.parametrize("keys", [None, 133], ids=["shared", "separate"])
@pytest.mark.parametrize(("channels", "tile"), TILES, ids=str)
def test_every_tile(forward, emulator, channels, tile, keys: int | None) -> None:
    """Several steps, so that buffers are filled again, and two tiles of queries, the last ragged."""
    call = make_call(1, 140, keys, *channels)
    result = forward(call)
    (launch,) = (launch for launch in emulator.launches() if "split_fwd" in launch.kernel)
    numbers = launch.kernel.split("SplitTile<")[1].split(">")[0].split(", ")
    assert tuple(int(number) for number in numbers) == tile
    assert launch.threads == 128 * (1 + tile[0])
    assert_within_gate(result, call, False)


@only_emulated
def test_shared_keys_are_cut_once(forward, emulator) -> None:
    for keys, cuts in ((None, 2), (40, 3)):
        emulator.configure(multiprocessors=2)
        forward(make_call(1, 40, keys, 16, 8))
        assert kernels_of(emulator).count("oc_attention_split_kernel") == cuts


@only_emulated
@pytest.mark.parametrize("layout", LAYOUTS)
def test_slices_of_values(forward, emulator, layout: str) -> None:
    """More values than a tile has room for: slices compute the scores again."""
    emulator.configure(multiprocessors=2)
    call = make_call(1, 40, 70, 9, 300)
    assert_within_gate(forward(call, layout), call, False)


@only_emulated
@pytest.mark.parametrize("channels", [(24, 20), (256, 200)], ids=str)
def test_cut_tiles_repeat_under_every_schedule(forward, emulator, channels) -> None:
    """Stream-K: parts of tiles are combined in the order of their keys."""
    call = make_call(1, 140, 700, *channels)
    first = None
    for seed in (0, 3, 7):
        emulator.configure(multiprocessors=10, seed=seed)
        result = forward(call, "nchw")
        assert "oc_attention_hopper_combine_kernel" in kernels_of(emulator)
        assert_within_gate(result, call, False)
        first = first or result
        assert torch.equal(result.out, first.out)
        assert torch.equal(result.lse, first.lse)


def test_runs_repeat_bit_for_bit(forward) -> None:
    call = make_call(1, 200, None, 64, 48)
    first = forward(call)
    for _ in range(2):
        again = forward(call)
        assert torch.equal(again.out, first.out)
        assert torch.equal(again.lse, first.lse)


def test_all_six_products_count(forward) -> None:
    """Numbers that are sums of parts of like size in every product: a lost one shows far above the gate."""
    generator = torch.Generator().manual_seed(1)
    call = make_call(1, 40, 50, 64, 24)

    def numbers(like: Tensor) -> Tensor:
        # 1 in each of the 24 bits: middle and low parts are as large as they can be, and all positive.
        bits = torch.randint(0, 2, (*like.shape, 23), generator=generator).double()
        return (1 + (bits * 2.0 ** -torch.arange(1, 24)).sum(-1)).float()

    for tensor in (call.query, call.key, call.value):
        tensor.copy_(numbers(tensor))
    call.query.mul_(torch.randn(call.query.shape, generator=generator).sign())
    out, lse = formula(call)
    result = forward(call)
    # Signs of the queries let scores differ; all of them count.
    assert error(result.out, out) <= 2.0**-23
    assert float((result.lse - lse).abs().max()) <= 2.0**-20


def test_weights_add_up_to_one(forward) -> None:
    """Weights are not rounded: sums are divided by the total of what was summed."""
    call = make_call(1, 20, 150, 16, 12)
    call.value.fill_(1.25)
    assert float((forward(call).out.double() - 1.25).abs().max()) <= 150 * 2.0**-24


@pytest.mark.parametrize("step", [0.5, 7.0, 30.0])
def test_growing_scores(forward, step: float) -> None:
    """Scores that grow along the keys, within the lazy threshold a tile and beyond it."""
    call = make_call(1, 20, 150, 16, 12)
    call.query[..., 0], call.key[..., 0] = 4, torch.arange(150) // 16 * step
    call.query[0, 7] *= -1  # one row whose scores fall
    out, _ = formula(call)
    eager, _ = formula(call, Tensor.float)
    assert error(forward(call).out, out) <= max(GATE, 2 * error(eager, out))


@pytest.mark.parametrize("scale", [0.0, -0.25])
def test_any_scale(forward, monkeypatch, scale: float) -> None:
    monkeypatch.setattr(Call, "scale", scale)
    call = make_call(1, 20, 70, 16, 12)
    out, _ = formula(call)
    assert error(forward(call).out, out) <= GATE


@pytest.mark.parametrize("number", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_nonfinite_numbers_stay_where_the_formula_puts_them(
    forward, where: str, number: float
) -> None:
    """Among powers of two, whose middle and low parts are 0: infinity times those would be NaN."""
    call = make_call(1, 20, 70, 16, 12)
    for tensor in (call.query, call.key, call.value):
        tensor.copy_(tensor.sign() * 2.0 ** (8 * tensor).round().clamp(-3, 1))
    getattr(call, where)[0, 2, 3] = number
    out, _ = formula(call)
    actual = forward(call).out
    assert torch.equal(actual.isnan(), out.isnan())
    assert torch.equal(actual.isinf(), out.isinf())
    assert torch.equal(actual[out.isinf()], out[out.isinf()].float())
    fine = out.isfinite()
    torch.testing.assert_close(actual[fine], out[fine].float())


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, -0x7FFFFF], ids=hex)
def test_nan_survives_the_cut_whatever_its_bits(forward, bits: int) -> None:
    """What tells a NaN from an infinity may lie in the bits that a part has not."""
    call = make_call(1, 20, 30, 8, 12)
    call.value.view(torch.int32)[0, 3, 5] = bits
    out = forward(call).out
    assert bool(out[..., 5].isnan().all())
    assert int(out.isnan().sum()) == 20


@pytest.mark.parametrize("multiprocessors", [1, 132])
def test_dead_tiles_leave_no_trace(forward, subject, request, multiprocessors: int) -> None:
    """Keys at -inf, in more than the first parts; then a row without any other key is NaN."""
    if subject == "emulated-hopper":
        request.getfixturevalue("emulator").configure(multiprocessors=2 * multiprocessors)
    call = make_call(1, 6, 400, 4, 3)
    call.query.abs_()
    call.key[:, :320] = -INF
    result = forward(call)
    alive = Call(call.query, call.key[:, 320:], call.value[:, 320:], call.grad_out)
    out, _ = formula(alive)
    assert error(result.out, out) <= GATE
    assert bool(result.lse.isfinite().all())
    call.key[:] = -INF
    dead = forward(call)
    assert bool(dead.out.isnan().all())
    assert bool((dead.lse == -INF).all())


@pytest.mark.parametrize("exponent", [-60, 60])
def test_large_and_small_numbers(forward, exponent: int) -> None:
    """Parts have the range of float32."""
    call = make_call(1, 20, 70, 16, 12)
    call.query.mul_(2.0**exponent)
    call.key.mul_(2.0**-exponent)
    call.value.mul_(2.0**exponent)
    out, _ = formula(call)
    assert error(forward(call).out, out) <= GATE


def test_errors_are_words(op, device: str) -> None:
    def refused(message: str, query: Tensor, value: Tensor, residual: Tensor | None = None) -> None:
        lse, out = torch.empty(query.shape[:2], device=device), torch.empty_like(value)
        with pytest.raises(RuntimeError, match=f"^oc_attention_hopper_fwd: {message}"):
            op(query, None, value, 1.0, out, lse, residual)

    wide = torch.zeros(1, 3, 520, device=device)
    narrow = wide[..., :8]
    refused("query must have at most 256 channels, got 520", wide, narrow)
    refused("value must have at most 512 channels, got 520", narrow, wide)
    refused("residual must be absent where nothing is rounded", narrow, narrow, narrow)
    double, lse = narrow.double(), torch.empty(1, 3, dtype=torch.float64, device=device)
    with pytest.raises(RuntimeError, match="query must have dtype BFloat16, Half or Float, got Do"):
        op(double, None, double, 1.0, double.clone(), lse, None)


def test_groups_in_float32_are_refused(op, subject: str, device: str) -> None:
    half = "emulated" if subject == "emulated-hopper" else "cuda"
    grouped = getattr(torch.ops, f"ocnet_{half}").partitioned_attention_hopper_fwd
    x, lse = torch.zeros(1, 4, 8, device=device), torch.empty(1, 4, device=device)
    whole, out = Grid(1).axes(2, 2).flat(), torch.empty_like(x)
    with pytest.raises(RuntimeError, match="BFloat16 or Half where there are groups, got Float"):
        grouped([x], [], [x], whole, 1.0, [out], [lse], [])


@only_emulated
@pytest.mark.parametrize("tf32", [False, True])
def test_the_back_end_takes_strict_float32_as_it_lies(op, emulator, tf32: bool) -> None:
    call = make_call(1, 40, None, 16, 12)
    query, value = (place(t, "nchw", "cpu") for t in (call.query, call.value))
    out, lse = torch.full((1, 40, 12), NAN), torch.full((1, 40), NAN)
    asked = ForwardCall(query, None, value, call.scale, tf32, out, lse, None)
    cuda_backend.forward(asked)
    assert ("oc_attention_hopper_split_fwd_kernel" in kernels_of(emulator)) == (not tf32)
    assert_within_gate(Result(out, lse, None), call, tf32)
    assert _hopper.operands(query, None, value)[0] is query
    reason = cuda_backend._HOPPER.refuse(Problem.of_call(asked), 40)
    assert reason == ("their products of float32 are exact, and TF32 is allowed" if tf32 else None)


def test_few_keys_are_half_as_many_as_in_16_bits(subject, backend, monkeypatch) -> None:
    monkeypatch.setattr(_hopper, "FEW_KEYS", 192)
    for dtype, few in ((torch.float32, 96), (torch.bfloat16, 192)):
        problem = Problem(torch.device("cpu"), dtype, 1, 4, few, 8, 8, False)
        reason = cuda_backend._HOPPER.refuse(problem, few)
        assert reason == f"others keep {few} keys or fewer on chip"
        assert cuda_backend._HOPPER.refuse(problem, few + 1) != reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_the_kernels_have_no_products_of(subject, backend, dtype: torch.dtype) -> None:
    problem = Problem(torch.device("cpu"), dtype, 1, 4, 4, 8, 8, False)
    for kernels, taken in (
        (_hopper.HopperKernels("oc_attention", _hopper.DTYPES), dtype == torch.float32),
        (_hopper.HopperKernels("partitioned_attention", _hopper.NARROW), False),
    ):
        refusal = kernels.refuse(problem, 4)
        assert (refusal == f"they have no products of {dtype}") == (not taken)
