# SPDX-License-Identifier: MIT
"""What is special to the CUDA kernels, at the level of the native ops: on a GPU and in the emulator.

What every back end must do is in test_oc_attention.py, which both go through as well.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ocnet.ops._layout import aligned_rows
from ocnet.testing import assert_same_nonfinite

pytestmark = pytest.mark.native

INF, NAN = float("inf"), float("nan")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ROUNDED = [torch.bfloat16, torch.float16]
SM_80_SHARED = 163 * 1024
SM_86_SHARED = 99 * 1024
NAMES = ("out", "lse", "residual", "grad_query", "grad_key", "grad_value")


class Call(NamedTuple):
    """Token matrices of one call, (N, tokens, channels)."""

    query: Tensor
    key: Tensor | None
    value: Tensor
    grad_out: Tensor

    @property
    def scale(self) -> float:
        return self.query.shape[-1] ** -0.5


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def reschedule(subject: str, backend: str, request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Change the order in which the emulator runs threads; a GPU has one of its own every time."""
    if subject == "cuda":
        return lambda seed: None
    emulator = request.getfixturevalue("emulator")
    return lambda seed: emulator.configure(seed=seed)


@pytest.fixture
def run(subject: str, backend: str, device: str) -> Callable[..., dict[str, Tensor]]:
    """Run a call forward and backward; returns the results that there are, by name."""
    ops = getattr(torch.ops, f"ocnet_{subject}")

    def run(
        call: Call, layout: str = "channels_last", wanted: str = "qkv", keep_residual: bool = True
    ) -> dict[str, Tensor]:
        # As the back end hands them over; fp64 kernels take any strides.
        query, key, value, grad_out = (
            None if t is None else aligned_rows(place(t, layout, device)) for t in call
        )
        dtype, sums = query.dtype, sums_of(query.dtype)

        def empty(like: Tensor | None, needed: bool = True) -> Tensor | None:
            if like is None or not needed:
                return None
            return place(torch.full(like.shape, NAN, dtype=dtype), layout, device)

        out, residual = empty(grad_out), empty(grad_out, keep_residual and dtype != sums)
        lse = torch.full(query.shape[:2], NAN, dtype=sums, device=device)
        ops.oc_attention_fwd(query, key, value, call.scale, False, out, lse, residual)
        grads = [empty(t, n in wanted) for t, n in ((query, "q"), (key, "k"), (value, "v"))]
        ops.oc_attention_bwd(
            grad_out, query, key, value, out, lse, residual, call.scale, False, *grads
        )
        results = dict(zip(NAMES, (out, lse, residual, *grads), strict=True))
        return {name: tensor for name, tensor in results.items() if tensor is not None}

    return run


def make_call(n: int, l: int, s: int | None, e: int, ev: int, dtype=torch.float32) -> Call:
    """Draw a call; without ``s``, the keys are the queries."""

    def draw(tokens: int, channels: int) -> Tensor:
        return torch.randn(n, tokens, channels, dtype=torch.float64).to(dtype)

    keys = l if s is None else s
    return Call(draw(l, e), None if s is None else draw(s, e), draw(keys, ev), draw(l, ev))


def place(values: Tensor, layout: str, device: str) -> Tensor:
    """Copy (N, tokens, channels) values to the strides of a layout; gaps are NaN."""
    if layout == "nchw":
        return values.to(device).mT.contiguous().mT
    if layout == "channels_last":
        return values.to(device, copy=True).contiguous()
    n, tokens, channels = values.shape
    shape = (n + 1, 3 * tokens + 1, 2 * channels + 3)
    room = torch.full(shape, NAN, dtype=values.dtype, device=device)
    return room[:n, 1::3, 2 : 2 * channels + 2 : 2].copy_(values)


def sums_of(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def formula(call: Call) -> dict[str, Tensor]:
    """Return what the plain formula gives in float64, with autograd."""
    query, value = (t.double().clone().requires_grad_() for t in (call.query, call.value))
    key = query if call.key is None else call.key.double().clone().requires_grad_()
    scores = call.scale * (query @ key.mT)
    out = scores.softmax(-1) @ value
    out.backward(call.grad_out.double())
    results = {"out": out.detach(), "lse": scores.detach().logsumexp(-1)}
    results |= {"grad_query": query.grad, "grad_value": value.grad}
    return results if call.key is None else results | {"grad_key": key.grad}


def assert_same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        different = int((tensor != right[name]).sum())
        assert different == 0, f"{name}: {different} of {tensor.numel()} differ"


@pytest.mark.parametrize("keys", [None, 37], ids=["shared", "separate"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_change_no_bit(run, dtype: torch.dtype, keys: int | None) -> None:
    call = make_call(2, 33, keys, 5, 66, dtype)
    dense = run(call)
    assert_same_bits(run(call, "nchw"), dense)
    spread = run(call, "gaps")
    assert_same_bits(spread, dense)
    for name, tensor in spread.items():
        if name != "lse":
            room = tensor._base
            assert int(room.isnan().sum()) == room.numel() - tensor.numel(), name


@pytest.mark.parametrize("keys", [None, 67], ids=["shared", "separate"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_schedule_changes_no_bit(run, reschedule, dtype: torch.dtype, keys: int | None) -> None:
    call = make_call(1, 66, keys, 5, 6, dtype)
    expected = run(call)
    for seed in (1, 2):
        reschedule(seed)
        assert_same_bits(run(call), expected)


@pytest.mark.parametrize("keys", [None, 37], ids=["shared", "separate"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lse_is_as_exact_as_its_sums(run, dtype: torch.dtype, keys: int | None) -> None:
    call = make_call(2, 70, keys, 20, 3, dtype)
    expected = formula(call)["lse"]
    # Scores sum E products, and lse sums S exponentials, which a few roundings make each.
    query, _, value, _ = (None if t is None else t.double().abs() for t in call)
    key = query if call.key is None else call.key.double().abs()
    score = call.scale * (query @ key.mT).amax(-1)
    eps = torch.finfo(sums_of(dtype)).eps
    bound = eps * ((query.shape[-1] + 2) * score + value.shape[1] + 8 + expected.abs())
    error = (run(call)["lse"].cpu().double() - expected).abs()
    assert bool((error <= bound).all()), (error / bound).max()


@pytest.mark.parametrize("layout", ["nchw", "gaps"])
@pytest.mark.parametrize("dtype", ROUNDED, ids=str)
def test_residual_restores_what_rounding_took(run, dtype: torch.dtype, layout: str) -> None:
    call = make_call(2, 70, 37, 20, 133, dtype)
    call.query.zero_()  # every weight is 1, which products do not round
    exact = formula(call)["out"]
    results = run(call, layout, wanted="")
    out, residual = (results[name].cpu().double() for name in ("out", "residual"))
    # Both halves together have twice the digits of one.
    limit = torch.finfo(dtype).eps ** 2 + 8 * torch.finfo(torch.float32).eps
    assert (out + residual - exact).abs().max() <= limit * exact.abs().max()
    assert (out - exact).abs().max() > 10 * limit * exact.abs().max()


@pytest.mark.parametrize("dtype", ROUNDED, ids=str)
def test_peaked_softmax_needs_the_residual(run, dtype: torch.dtype) -> None:
    """Each pixel is most similar to itself, and the gradient of its features a small difference."""
    call = make_call(1, 70, None, 64, 64, dtype)
    exact = formula(call)["grad_query"]

    def error(keep_residual: bool) -> float:
        grad = run(call, keep_residual=keep_residual)["grad_query"].cpu().double()
        return float((grad - exact).norm() / exact.norm())

    # Rounded once to its dtype, a result is off by at most half a step.
    with_residual = error(True)
    assert with_residual < torch.finfo(dtype).eps
    assert error(False) > 3 * with_residual


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("number", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("where", ["query", "key", "value", "grad_out", "both"])
def test_nonfinite_input_of_every_dtype(run, where: str, number: float, dtype) -> None:
    keys = None if where == "both" else 7
    call = make_call(2, 9, keys, 3, 5, dtype)
    getattr(call, "query" if where == "both" else where)[0, -1, 1] = number
    expected = formula(call)
    for name, tensor in run(call, "nchw", keep_residual=False).items():
        if name == "lse":
            continue  # NaN where the softmax is, though the logarithm may be infinite
        label = f"{name} with {number} in {where}"
        # An infinite incoming gradient makes inf - inf, whose kind depends on the order of terms.
        assert_same_nonfinite(label, tensor, expected[name], tell_apart=where != "grad_out")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_recovers_from_infinite_first_tiles(run, dtype: torch.dtype) -> None:
    # 64 keys are one tile, two in float64; positive queries score -inf there.
    call = make_call(1, 6, 77, 4, 3, dtype)
    call.query.abs_()
    call.key[:, :64] = -INF
    alive = Call(call.query, call.key[:, 64:], call.value[:, 64:], call.grad_out)
    results = run(call, wanted="")
    assert bool(results["out"].isfinite().all())
    # Without those tiles the sums are the same, down to their order.
    assert_same_bits(results, run(alive, wanted=""))


@pytest.mark.parametrize("wanted", ["q", "k", "v", "qk", "qv", "kv", ""])
@pytest.mark.parametrize("keys", [None, 35], ids=["shared", "separate"])
def test_absent_gradients_change_no_bit(run, wanted: str, keys: int | None) -> None:
    call = make_call(1, 35, keys, 18, 70)
    every, some = run(call), run(call, wanted=wanted)
    assert_same_bits(some, {name: tensor for name, tensor in every.items() if name in some})
    present = {name for name in some if name.startswith("grad_")}
    letters = wanted if keys is not None else wanted.replace("k", "")
    assert present == {f"grad_{name}" for name in ("query", "key", "value") if name[0] in letters}


only_emulated = pytest.mark.parametrize("subject", ["emulated"], indirect=True)


@only_emulated
@pytest.mark.parametrize("keys", [None, 5], ids=["shared", "separate"])
def test_less_shared_memory_changes_no_bit(run, emulator, keys: int | None) -> None:
    call = make_call(1, 5, keys, 70, 512, torch.float64)
    results, blocks = [], []
    for limit in (SM_80_SHARED, SM_86_SHARED):
        emulator.configure(shared_limit=limit)
        results.append(run(call))
        launches = emulator.launches()
        assert all(launch.shared_bytes <= limit for launch in launches)
        blocks.append(sum(launch.blocks for launch in launches))
    assert blocks[0] < blocks[1]
    assert_same_bits(*results)


@only_emulated
@pytest.mark.parametrize("wanted", ["q", "k", "v", "qk", "qv", "kv", "qkv", ""])
@pytest.mark.parametrize("keys", [None, 3], ids=["shared", "separate"])
def test_nothing_is_launched_for_absent_gradients(run, emulator, wanted: str, keys) -> None:
    run(make_call(1, 3, keys, 2, 2), wanted=wanted)
    kernels = [launch.kernel for launch in emulator.launches()]
    of_scores = "q" in wanted or ("k" in wanted and keys is not None)
    if keys is None:
        passes = int(of_scores or "v" in wanted)
    else:
        passes = int("q" in wanted) + int("k" in wanted or "v" in wanted)
    assert sum("fwd" in kernel for kernel in kernels) == 1
    assert sum("delta" in kernel for kernel in kernels) == int(of_scores)
    assert len(kernels) == 1 + int(of_scores) + passes
