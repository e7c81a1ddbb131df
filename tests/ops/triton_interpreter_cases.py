# SPDX-License-Identifier: MIT
"""The Triton kernels against the plain formula, on the CPU in Triton's interpreter.

``test_triton_interpreter.py`` runs this file in a process of its own, because Triton reads
``TRITON_INTERPRET`` when the kernels are imported; pytest does not collect it by itself.
"""

import itertools

import pytest
import torch

from ocnet._env import triton_interpreted
from ocnet.ops import oc_attention
from ocnet.ops.oc_attention import configs, triton_backend
from ocnet.ops.oc_attention.problem import BackwardCall, ForwardCall, Problem
from ocnet.testing import (
    AttentionCase,
    AttentionInputs,
    assert_as_accurate,
    assert_same_nonfinite,
    eager_results,
    make_inputs,
    oracle_results,
    run_op,
    summed_magnitudes,
)

# NumPy warns of every inf - inf that the interpreter computes; a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

INF, NAN = float("inf"), float("nan")
FP32, FP16 = torch.float32, torch.float16


def test_this_process_interprets() -> None:
    assert triton_interpreted()


def check(case: AttentionCase) -> None:
    inputs = make_inputs(case)
    actual, oracle = run_op(inputs, "triton").named(), oracle_results(inputs).named()
    eager = [run.named() for run in eager_results(inputs)]
    sizes = summed_magnitudes(inputs).named()
    keys = inputs.key.shape[2] * inputs.key.shape[3]
    terms = case.e + case.ev + keys + inputs.query.shape[2] * inputs.query.shape[3]
    assert actual.keys() == oracle.keys()
    for name, result in actual.items():
        runs = [run[name] for run in eager]
        assert_as_accurate(f"{case}: {name}", result, oracle[name], runs, sizes[name], terms)


# Channels around every padding, tokens around every tile edge (the narrowest tile is 32 tokens).
CASES = [
    AttentionCase(1, 1, 1, (1, 1), shared=True),
    AttentionCase(1, 1, 1, (1, 1), (1, 1), FP16),
    AttentionCase(2, 3, 40, (1, 31), (3, 11)),
    AttentionCase(2, 3, 40, (5, 7), (1, 1), FP16, "channels_last"),
    AttentionCase(2, 16, 3, (4, 8), None, FP32, "channels_last", shared=True),
    AttentionCase(2, 16, 16, (8, 8), (5, 13), FP16, "cropped"),
    AttentionCase(2, 40, 64, (13, 5), (2, 3), FP32, "expanded", scale=-0.5),
    AttentionCase(1, 40, 1, (3, 11), None, FP16, "expanded", shared=True),
    AttentionCase(1, 64, 130, (10, 14), None, FP16, shared=True),
    AttentionCase(1, 64, 130, (7, 13), (5, 7), FP16, "channels_last"),
    AttentionCase(1, 130, 16, (3, 11), None, FP32, "cropped", shared=True),
    AttentionCase(1, 130, 64, (1, 3), (7, 20), FP16),
    AttentionCase(1, 256, 40, (3, 3), (5, 8), FP16, "channels_last", scale=0.0),
    AttentionCase(1, 256, 256, (6, 6), None, FP16, shared=True),
    AttentionCase(1, 3, 256, (3, 12), (2, 17), FP16, scale=1.0),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_small_maps(case: AttentionCase) -> None:
    check(case)


@pytest.mark.parametrize("hopper", [False, True], ids=["portable", "hopper"])
@pytest.mark.parametrize(
    "case",
    [
        AttentionCase(1, 300, 400, (3, 5), None, FP16, shared=True),
        AttentionCase(1, 300, 30, (1, 3), (3, 11), FP16),
        AttentionCase(1, 30, 300, (1, 3), (3, 11), FP16),
    ],
    ids=str,
)
def test_sliced_channels(
    case: AttentionCase, hopper: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wide maps are multiplied slice by slice and written by several programs."""
    monkeypatch.setattr(triton_backend, "_is_hopper", lambda device: hopper)
    check(case)


def test_sliced_channels_in_float32() -> None:
    check(AttentionCase(1, 257, 260, (1, 3), (1, 5), FP32))


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("number", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("where", ["query", "key", "value", "grad_out"])
def test_nonfinite_input_stays_where_the_formula_puts_it(
    where: str, number: float, shared: bool
) -> None:
    inputs = make_inputs(AttentionCase(2, 5, 6, (5, 7), (3, 13), shared=shared))
    with torch.no_grad():
        getattr(inputs, where)[0, 2, 2, 4] = number
    actual, oracle = run_op(inputs, "triton").named(), oracle_results(inputs).named()
    for name, tensor in actual.items():
        # An infinite incoming gradient makes inf - inf, whose kind depends on the order of sums.
        assert_same_nonfinite(name, tensor, oracle[name], tell_apart=where != "grad_out")


@pytest.mark.parametrize("dead_keys", [1, 32, 70])
def test_row_recovers_from_keys_at_minus_infinity(dead_keys: int) -> None:
    """Neither a first tile of -inf nor padding beside an infinite key may leave a NaN."""
    query, key = torch.ones(1, 4, 3, 5), torch.randn(1, 4, 1, dead_keys + 7)
    key[:, :, :, :dead_keys] = -INF
    value, grad_out = torch.randn(1, 5, 1, dead_keys + 7), torch.randn(1, 5, 3, 5)
    leaves = (t.requires_grad_() for t in (query, key, value))
    inputs = AttentionInputs(*leaves, grad_out, None)
    actual, oracle = run_op(inputs, "triton").named(), oracle_results(inputs).named()
    assert oracle["out"].isfinite().all()
    assert oracle["grad_key"].isfinite().all()
    for name, tensor in actual.items():
        torch.testing.assert_close(tensor, oracle[name].float(), equal_nan=True)


@pytest.mark.parametrize("number", [INF, -INF], ids=str)
def test_row_without_a_finite_maximum_is_nan(number: float) -> None:
    query, key = torch.ones(1, 4, 2, 2), torch.randn(1, 4, 3, 3).abs()
    query[0, :, 1, 0] = number
    out = oc_attention(query, key, torch.randn(1, 5, 3, 3), backend="triton")
    assert out[0, :, 1, 0].isnan().all()
    assert int(out.isnan().sum()) == 5


@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_wanted_gradients_alone_are_the_same_bits(shared: bool, dtype: torch.dtype) -> None:
    """Also the repeatability test: every gradient is computed several times over."""
    n, l, s, e, ev = 2, 35, 35 if shared else 21, 19, 12
    query, value = torch.randn(n, l, e).to(dtype), torch.randn(n, s, ev).to(dtype)
    key = None if shared else torch.randn(n, s, e).to(dtype)
    grad_out, out, lse = (
        torch.randn(n, l, ev).to(dtype),
        torch.empty(n, l, ev).to(dtype),
        torch.empty(n, l),
    )
    triton_backend.forward(ForwardCall(query, key, value, 0.3, False, out, lse, None))
    scores = 0.3 * query.double() @ (query if key is None else key).double().mT
    torch.testing.assert_close(lse, scores.logsumexp(-1).float())
    sources = (query, key, value)
    results: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}
    for wanted in itertools.product([True, False], repeat=3):
        grads = [
            torch.full_like(source, NAN) if want and source is not None else None
            for want, source in zip(wanted, sources, strict=True)
        ]
        triton_backend.backward(
            BackwardCall(grad_out, query, key, value, out, lse, None, 0.3, False, *grads)
        )
        for index, grad in enumerate(grads):
            if grad is not None:
                results[index].append(grad)
    counts = [len(found) for found in results.values()]
    assert counts == [4, 0 if shared else 4, 4]
    for found in results.values():
        assert all(torch.equal(found[0], again) for again in found)


def test_strides_that_no_layout_has() -> None:
    """Inputs with gaps everywhere, and a result inside a larger board that must stay as it was."""
    n, l, s, e, ev = 2, 37, 21, 5, 7
    query = torch.randn(n, 3 * l, 2 * e)[:, ::3, ::2]
    key = torch.randn(e, s, n).permute(2, 1, 0)
    value = torch.randn(n, s + 2, ev + 1)[:, 1:-1, 1:]
    board = torch.full((ev + 2, n, l + 3), 7.0)
    out, lse = board[1:-1, :, 1:-2].permute(1, 2, 0), torch.empty(n, l)
    triton_backend.forward(ForwardCall(query, key, value, 0.5, False, out, lse, None))
    scores = 0.5 * query.double() @ key.double().mT
    torch.testing.assert_close(out, (scores.softmax(-1) @ value.double()).float())
    assert (board[[0, -1]] == 7).all()
    assert (board[:, :, [0, -1, -2]] == 7).all()


def test_refusals_in_the_interpreter() -> None:
    def problem(dtype: torch.dtype, e: int = 8, device: str = "cpu") -> Problem:
        return Problem(torch.device(device), dtype, 1, 4, 4, e, 8, False)

    assert triton_backend.supports(problem(FP32)).ok
    assert triton_backend.supports(problem(FP16)).ok
    for refused, word in (
        (problem(torch.bfloat16), "bfloat16"),
        (problem(torch.float64), "float64"),
        (problem(FP32, configs.MAX_CHANNELS + 1), "513"),
        (problem(FP32, device="cuda"), "cuda"),
    ):
        support = triton_backend.supports(refused)
        assert not support.ok
        assert word in support.reason
