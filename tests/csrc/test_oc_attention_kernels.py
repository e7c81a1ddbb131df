# SPDX-License-Identifier: MIT
"""The CUDA kernels of oc_attention, run by the block executor, against the plain formula."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.native

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SM_80_SHARED = 163 * 1024
SM_86_SHARED = 99 * 1024
LAYOUTS = ["nchw", "channels_last", "strided"]


@dataclass(frozen=True)
class Case:
    """Sizes by the project's alphabet; without keys of their own, S is L."""

    N: int
    L: int
    S: int
    E: int
    Ev: int
    shared: bool = False

    def __str__(self):
        keys = "shared" if self.shared else f"S{self.S}"
        return f"N{self.N}-L{self.L}-{keys}-E{self.E}-Ev{self.Ev}"


CASES = [
    Case(1, 1, 1, 1, 1),
    Case(2, 70, 37, 20, 33),
    Case(1, 33, 131, 65, 64),
    Case(1, 5, 19, 512, 512),
    Case(1, 1, 1, 3, 2, shared=True),
    Case(2, 77, 77, 33, 70, shared=True),
]


def _place(values: torch.Tensor, layout: str) -> torch.Tensor:
    """A copy of (N, tokens, channels) values with the strides of a layout; gaps are NaN."""
    if layout == "nchw":
        return values.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "channels_last":
        return values.contiguous()
    n, tokens, channels = values.shape
    room = values.new_full((n + 1, 3 * tokens + 1, 2 * channels + 3), math.nan)
    view = room[:n, 1::3, 2 : 2 * channels + 2 : 2]
    view.copy_(values)
    return view


def _inputs(case: Case, dtype: torch.dtype, layout: str = "channels_last", seed: int = 0):
    generator = torch.Generator().manual_seed(seed)

    def draw(tokens, channels):
        values = torch.randn(case.N, tokens, channels, generator=generator, dtype=torch.float64)
        return _place(values.to(dtype), layout)

    query = draw(case.L, case.E)
    key = None if case.shared else draw(case.S, case.E)
    return query, key, draw(case.S, case.Ev), draw(case.L, case.Ev)


def _fields(tensor: torch.Tensor | None) -> tuple:
    if tensor is None:
        return (0, 0, 0, 0, 0, 0)
    return (tensor.data_ptr(), *tensor.stride(), tensor.shape[1], tensor.shape[2])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _empty(shape: tuple, dtype: torch.dtype, layout: str) -> torch.Tensor:
    return _place(torch.full(shape, math.nan, dtype=dtype), layout)


def _scale(query: torch.Tensor) -> float:
    return query.shape[-1] ** -0.5


def _forward(
    csrc, query, key, value, layout="channels_last", limit=SM_80_SHARED, seed=0, residual=None
):
    n, length, _ = query.shape
    out = _empty((n, length, value.shape[-1]), query.dtype, layout)
    lse = torch.full((n, length), math.nan, dtype=_accumulator(query.dtype))
    launches = getattr(csrc, f"attention_fwd_{_name(query.dtype)}")(
        n,
        _fields(query),
        _fields(query if key is None else key),
        _fields(value),
        _fields(out),
        lse.data_ptr(),
        _fields(residual),
        _scale(query),
        limit,
        seed,
    )
    return out, lse, launches


def _backward(
    csrc,
    tensors,
    out,
    lse,
    wanted="qkv",
    layout="channels_last",
    limit=SM_80_SHARED,
    seed=0,
    residual=None,
):
    query, key, value, grad_out = tensors
    grads = {
        "q": _empty(query.shape, query.dtype, layout) if "q" in wanted else None,
        "k": _empty(key.shape, query.dtype, layout) if "k" in wanted and key is not None else None,
        "v": _empty(value.shape, query.dtype, layout) if "v" in wanted else None,
    }
    delta = torch.full_like(lse, math.nan)
    launches = getattr(csrc, f"attention_bwd_{_name(query.dtype)}")(
        query.shape[0],
        key is None,
        _fields(grad_out),
        _fields(query),
        _fields(query if key is None else key),
        _fields(value),
        _fields(out),
        lse.data_ptr(),
        _fields(residual),
        delta.data_ptr(),
        _scale(query),
        _fields(grads["q"]),
        _fields(grads["k"]),
        _fields(grads["v"]),
        limit,
        seed,
    )
    return grads, launches


def _plain(query, key, value, grad_out) -> dict[str, np.ndarray]:
    """The plain formula and its gradients in extended precision."""

    def wide(tensor):
        return tensor.double().numpy().astype(np.longdouble)

    scale = np.longdouble(_scale(query))
    q, v, g = wide(query), wide(value), wide(grad_out)
    k = q if key is None else wide(key)
    with np.errstate(all="ignore"):
        scores = scale * (q @ k.transpose(0, 2, 1))
        peak = scores.max(axis=2, keepdims=True)
        weights = np.exp(scores - peak)
        totals = weights.sum(axis=2, keepdims=True)
        weights = weights / totals
        grad_weights = g @ v.transpose(0, 2, 1)
        delta = (weights * grad_weights).sum(axis=2, keepdims=True)
        grad_scores = scale * weights * (grad_weights - delta)
        grad_q = grad_scores @ k
        grad_k = grad_scores.transpose(0, 2, 1) @ q
        results = {
            "out": weights @ v,
            "lse": (peak + np.log(totals))[..., 0],
            "q": grad_q + grad_k if key is None else grad_q,
            "v": weights.transpose(0, 2, 1) @ g,
        }
    if key is not None:
        results["k"] = grad_k
    return results


def _eager(query, key, value, grad_out) -> dict[str, torch.Tensor]:
    """The plain formula in the dtype of its inputs, with autograd."""
    q = query.detach().clone().requires_grad_()
    k = q if key is None else key.detach().clone().requires_grad_()
    v = value.detach().clone().requires_grad_()
    scores = _scale(query) * (q @ k.transpose(1, 2))
    out = torch.softmax(scores, dim=-1) @ v
    out.backward(grad_out)
    results = {"out": out.detach(), "q": q.grad, "v": v.grad}
    wide_query, wide_key = (
        q.detach().to(_accumulator(q.dtype)),
        k.detach().to(_accumulator(q.dtype)),
    )
    wide_scores = _scale(query) * (wide_query @ wide_key.transpose(1, 2))
    results["lse"] = torch.logsumexp(wide_scores, dim=-1)
    if key is not None:
        results["k"] = k.grad
    return results


def _error(got: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.abs(got.double().numpy() - expected).max())


def _assert_as_good_as_eager(got, expected, eager, name):
    """At most twice the error of the same maths done eagerly, and a few roundings.

    One to the dtype itself (half an ulp), and 4 ulp of the accumulators: matrix libraries split a
    long sum over vector lanes, which makes eager more accurate than one running sum.
    """
    ulps = 0.5 * torch.finfo(got.dtype).eps + 4 * torch.finfo(_accumulator(got.dtype)).eps
    limit = 2 * _error(eager, expected) + ulps * float(np.abs(expected).max())
    assert _error(got, expected) <= limit, name


def _assert_gaps_untouched(view: torch.Tensor, layout: str):
    if layout == "strided":
        room = view._base
        assert int(room.isnan().sum()) == room.numel() - view.numel()


def test_plain_formula_is_the_one_torch_differentiates():
    tensors = _inputs(Case(2, 9, 11, 5, 7), torch.float64)
    eager = _eager(*tensors)
    for name, expected in _plain(*tensors).items():
        assert _error(eager[name], expected) < 1e-14


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=_name)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_match_plain_formula(csrc, case, dtype, layout):
    tensors = _inputs(case, dtype, layout)
    query, key, value, _ = tensors
    expected, eager = _plain(*tensors), _eager(*tensors)
    out, lse, _ = _forward(csrc, query, key, value, layout)
    grads, _ = _backward(csrc, tensors, out, lse, layout=layout)
    got = {"out": out, "lse": lse} | {n: grad for n, grad in grads.items() if grad is not None}
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        _assert_as_good_as_eager(tensor, expected[name], eager[name], name)
        if name != "lse":
            _assert_gaps_untouched(tensor, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=_name)
def test_residual_restores_what_rounding_took(csrc, dtype, layout):
    tensors = _inputs(Case(2, 70, 37, 20, 133), dtype, layout)
    exact = _plain(*tensors)["out"]
    residual = _empty((2, 70, 133), dtype, layout)
    out, _, _ = _forward(csrc, *tensors[:3], layout, residual=residual)
    # Both halves together have twice the digits of one.
    eps = torch.finfo(dtype).eps
    limit = eps * eps + 8 * torch.finfo(torch.float32).eps
    assert _error(out.double() + residual.double(), exact) <= limit * np.abs(exact).max()
    assert _error(out, exact) > 10 * limit * np.abs(exact).max()
    _assert_gaps_untouched(residual, layout)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=_name)
def test_peaked_softmax_needs_the_residual(csrc, dtype):
    """Shared gaussian features: each pixel is most similar to itself, and dX is a small difference."""
    tensors = _inputs(Case(1, 70, 70, 64, 64, shared=True), dtype)
    exact = _plain(*tensors)["q"]
    errors = []
    for keep in (True, False):
        residual = _empty((1, 70, 64), dtype, "channels_last") if keep else None
        out, lse, _ = _forward(csrc, *tensors[:3], residual=residual)
        grads, _ = _backward(csrc, tensors, out, lse, residual=residual)
        error = np.linalg.norm(grads["q"].double().numpy() - exact)
        errors.append(float(error / np.linalg.norm(exact)))
    # Rounded once to its dtype, a result is off by at most half a step; by a third of it on average.
    assert errors[0] < torch.finfo(dtype).eps
    assert errors[1] > 3 * errors[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=_name)
@pytest.mark.parametrize("case", [CASES[1], CASES[5]], ids=str)
def test_thread_order_does_not_change_a_bit(csrc, case, dtype):
    tensors = _inputs(case, dtype)
    runs = []
    for seed in (1, 2):
        out, lse, _ = _forward(csrc, *tensors[:3], seed=seed)
        grads, _ = _backward(csrc, tensors, out, lse, seed=seed)
        runs.append([out, lse, *[grad for grad in grads.values() if grad is not None]])
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("shared", [False, True])
def test_slices_do_not_change_a_bit(csrc, shared):
    case = Case(1, 5, 5, 300, 512, shared)
    tensors = _inputs(case, torch.float32)
    runs = []
    for limit in (SM_80_SHARED, SM_86_SHARED):
        out, lse, forward = _forward(csrc, *tensors[:3], limit=limit)
        grads, backward = _backward(csrc, tensors, out, lse, limit=limit)
        assert all(shared_bytes <= limit for _, shared_bytes in forward + backward)
        runs.append((out, lse, grads, forward))
    assert runs[0][3][0][0] < runs[1][3][0][0]
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    for name, grad in runs[0][2].items():
        if grad is not None:
            assert torch.equal(grad, runs[1][2][name]), name


@pytest.mark.parametrize("wanted", ["q", "k", "v", "qk", "qv", "kv", ""])
@pytest.mark.parametrize("shared", [False, True])
def test_absent_gradients_leave_the_others_alone(csrc, wanted, shared):
    case = Case(1, 35, 35, 18, 70, shared)
    tensors = _inputs(case, torch.float32)
    out, lse, _ = _forward(csrc, *tensors[:3])
    every, _ = _backward(csrc, tensors, out, lse)
    some, launches = _backward(csrc, tensors, out, lse, wanted=wanted)
    for name, grad in some.items():
        assert grad is None or torch.equal(grad, every[name])
    needs_scores = "q" in wanted or ("k" in wanted and not shared)
    passes = 1 if shared else int("q" in wanted) + int("k" in wanted or "v" in wanted)
    if not (needs_scores or "v" in wanted):
        passes = 0
    assert len(launches) == passes + int(needs_scores)


@pytest.mark.parametrize("dtype", DTYPES, ids=_name)
def test_row_recovers_from_infinite_first_tile(csrc, dtype):
    # 70 keys of -inf fill the first key tile of every dtype, and positive queries score -inf there.
    case = Case(1, 6, 77, 4, 3)
    query, key, value, _ = _inputs(case, dtype)
    query = query.abs()
    key[:, :70] = -math.inf
    out, lse, _ = _forward(csrc, query, key, value)
    expected = (
        torch.softmax(_scale(query) * query @ key[:, 70:].transpose(1, 2), -1) @ value[:, 70:]
    )
    plain = _plain(query, key[:, 70:], value[:, 70:], torch.zeros_like(out))
    _assert_as_good_as_eager(out, plain["out"], expected, "out")
    assert not lse.isnan().any()


def _assert_special_values_match(got: torch.Tensor, expected: torch.Tensor, name: str):
    assert torch.equal(got.isnan(), expected.isnan()), name
    assert torch.equal(got == math.inf, expected == math.inf), name
    assert torch.equal(got == -math.inf, expected == -math.inf), name


@pytest.mark.parametrize("dtype", DTYPES, ids=_name)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("target", ["query", "key", "value", "grad_out", "query_and_key"])
def test_nan_and_inf_spread_as_in_plain_formula(csrc, target, poison, dtype):
    shared = target == "query_and_key"
    case = Case(2, 70, 70 if shared else 67, 3, 5, shared)
    query, key, value, grad_out = tensors = _inputs(case, dtype, "nchw")
    poisoned = {"query": query, "key": key, "value": value, "grad_out": grad_out}
    poisoned["query_and_key"] = query
    # The last token of the first image lies in a ragged tile.
    poisoned[target][0, -1, 1] = poison
    wide = [None if tensor is None else tensor.double() for tensor in tensors]
    expected = _eager(*wide)
    out, lse, _ = _forward(csrc, query, key, value, "nchw")
    grads, _ = _backward(csrc, tensors, out, lse, layout="nchw")
    _assert_special_values_match(out, expected["out"], "out")
    for name, grad in grads.items():
        if grad is not None:
            _assert_special_values_match(grad, expected[name], name)
