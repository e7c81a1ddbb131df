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
from ocnet.ops.oc_attention import configs, triton_backend, triton_plan
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


# Kinds of launches: loads through pointers; loads through descriptors, few keys kept on chip, and
# every other loop cut into parts.
MACHINES = ("pointers", "descriptors")


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "descriptors":
        monkeypatch.setattr(triton_plan, "is_hopper", lambda device: True)
        monkeypatch.setattr(configs, "splits", lambda grid, steps, processors: min(steps, 3))
    return request.param


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


@pytest.mark.parametrize("case", CASES[::2], ids=str)
def test_small_maps(case: AttentionCase) -> None:
    check(case)


@pytest.mark.parametrize("case", CASES[1::2], ids=str)
def test_small_maps_through_descriptors(
    case: AttentionCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_plan, "is_hopper", lambda device: True)
    check(case)


@pytest.mark.parametrize(
    "case",
    [
        AttentionCase(1, 300, 400, (3, 5), None, FP16, shared=True),
        AttentionCase(1, 300, 30, (1, 3), (3, 11), FP16),
        AttentionCase(1, 30, 300, (1, 3), (3, 11), FP16),
    ],
    ids=str,
)
def test_sliced_channels(case: AttentionCase, machine: str) -> None:
    """Wide maps are multiplied slice by slice and written by several programs."""
    check(case)


def test_sliced_channels_in_float32() -> None:
    check(AttentionCase(1, 257, 260, (1, 3), (1, 5), FP32))


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("number", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("where", ["query", "key", "value", "grad_out"])
def test_nonfinite_input_stays_where_the_formula_puts_it(
    where: str, number: float, shared: bool, machine: str
) -> None:
    check_nonfinite(AttentionCase(2, 5, 6, (5, 7), (3, 13), shared=shared), where, number)


@pytest.mark.parametrize("number", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("where", ["query", "key", "value", "grad_out"])
@pytest.mark.parametrize("keys", [39, 150])
def test_nonfinite_input_among_few_keys(
    keys: int, where: str, number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_plan, "is_hopper", lambda device: True)
    case = AttentionCase(1, 5, 6, (5, 7), (keys // 3, 3), FP16, "channels_last")
    check_nonfinite(case, where, number)


def check_nonfinite(case: AttentionCase, where: str, number: float) -> None:
    inputs = make_inputs(case)
    with torch.no_grad():
        getattr(inputs, where)[0, 2, 2, 2] = number
    actual, oracle = run_op(inputs, "triton").named(), oracle_results(inputs).named()
    for name, tensor in actual.items():
        # An infinite incoming gradient makes inf - inf, whose kind depends on the order of sums.
        assert_same_nonfinite(name, tensor, oracle[name], tell_apart=where != "grad_out")


@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
@pytest.mark.parametrize("dead_keys", [1, 32, 70])
def test_row_recovers_from_keys_at_minus_infinity(
    dead_keys: int, dtype: torch.dtype, machine: str
) -> None:
    """Neither a first tile, or part, of -inf nor padding beside an infinite key may leave a NaN."""
    query, key = torch.ones(1, 4, 3, 5), torch.randn(1, 4, 1, dead_keys + 7)
    key[:, :, :, :dead_keys] = -INF
    value, grad_out = torch.randn(1, 5, 1, dead_keys + 7), torch.randn(1, 5, 3, 5)
    query, key, value, grad_out = (t.to(dtype) for t in (query, key, value, grad_out))
    leaves = (t.requires_grad_() for t in (query, key, value))
    inputs = AttentionInputs(*leaves, grad_out, None)
    actual, oracle = run_op(inputs, "triton").named(), oracle_results(inputs).named()
    assert oracle["out"].isfinite().all()
    assert oracle["grad_key"].isfinite().all()
    for name, tensor in actual.items():
        # Every product and sum of a few dozen terms rounds at most once to the dtype.
        close = {
            "rtol": 0,
            "atol": 4 * torch.finfo(dtype).eps * oracle[name].nan_to_num().abs().max().item(),
        }
        torch.testing.assert_close(tensor, oracle[name].to(dtype), equal_nan=True, **close)


@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
@pytest.mark.parametrize("step", [0.05, 0.5, 40.0, -40.0])
def test_reference_that_lags_behind_the_maximum(
    step: float, dtype: torch.dtype, machine: str
) -> None:
    """Scores that rise, or fall, slower and faster than the slack from one tile to the next."""
    query = torch.ones(1, 1, 4, 8, dtype=dtype)
    key = (step * torch.arange(410.0).div(16).floor()).to(dtype).view(1, 1, 10, 41)
    value = torch.randn(1, 3, 10, 41).to(dtype)
    out = oc_attention(query, key, value, scale=1.0, backend="triton")
    weights = key.double().flatten().softmax(0)
    wanted = (value.double().flatten(2) @ weights).to(dtype)[..., None, None]
    torch.testing.assert_close(out, wanted.expand(-1, -1, 4, 8))


@pytest.mark.parametrize("loud", [0, -1], ids=["before", "after"])
def test_diagonal_first_order_is_exact(loud: int, machine: str) -> None:
    """Rows whose loudest pixel comes before or after their own; also where the loop is cut."""
    query, value = torch.randn(1, 8, 9, 17), torch.randn(1, 8, 9, 17)
    query[:, :, loud] *= 4
    out = oc_attention(query, query, value, backend="triton")
    tokens = query.double().flatten(2)
    weights = (8**-0.5 * tokens.mT @ tokens).softmax(-1)
    wanted = (value.double().flatten(2) @ weights.mT).view_as(value)
    torch.testing.assert_close(out, wanted.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("number", [INF, -INF], ids=str)
def test_row_without_a_finite_maximum_is_nan(number: float) -> None:
    query, key = torch.ones(1, 4, 2, 2), torch.randn(1, 4, 3, 3).abs()
    query[0, :, 1, 0] = number
    out = oc_attention(query, key, torch.randn(1, 5, 3, 3), backend="triton")
    assert out[0, :, 1, 0].isnan().all()
    assert int(out.isnan().sum()) == 5


@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_wanted_gradients_alone_are_the_same_bits(
    shared: bool, dtype: torch.dtype, machine: str
) -> None:
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


def test_strides_that_no_layout_has(machine: str) -> None:
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


FEW_CASES = [
    AttentionCase(1, 40, 20, (9, 17), (1, 19), FP16, "channels_last"),
    AttentionCase(3, 16, 64, (5, 29), (4, 16), FP16, "channels_last", scale=-0.5),
    AttentionCase(2, 20, 33, (10, 13), (10, 13), FP16, "channels_last"),
    AttentionCase(1, 33, 16, (8, 8), (9, 19), FP16, "channels_last"),
]


@pytest.mark.parametrize("processors", [1, 5])
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_few_keys(case: AttentionCase, processors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs walk over several tiles of queries, or have one each."""
    monkeypatch.setattr(triton_plan, "is_hopper", lambda device: True)
    monkeypatch.setattr(triton_plan, "multiprocessors", lambda device: processors)
    check(case)


def _tf32(matrix: torch.Tensor) -> torch.Tensor:
    """Round to nearest in units of the eleventh significant bit, ties away from zero."""
    fraction, exponent = torch.frexp(matrix.double())
    scaled = fraction * 2**11
    return torch.ldexp((scaled.abs() + 0.5).floor().copysign(scaled), exponent - 11).float()


def test_rounding_to_tf32() -> None:
    numbers = torch.randn(1, 7, 130)
    numbers[0, 0, :6] = torch.tensor([0.0, -0.0, INF, -INF, 1 + 2**-11, -1 - 3 * 2**-11])
    bits = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, 0x7F7FFFFF], dtype=torch.int32)
    numbers[0, 1, :4] = bits.view(FP32)
    rows = triton_plan.rounded(numbers, 132)
    assert (rows[..., 130:] == 0).all()
    rounded = rows[..., :130]
    assert rounded[0, 1, :3].isnan().all()
    assert rounded[0, 1, 3] == INF
    usual = numbers.clone()
    usual[0, 1, :4], usual[0, 0, 2:4] = 1, 1
    expected = _tf32(usual)
    expected[0, 1, :4], expected[0, 0, 2:4] = rounded[0, 1, :4], numbers[0, 0, 2:4]
    torch.testing.assert_close(rounded, expected, rtol=0, atol=0, equal_nan=True)


def test_tf32_operands_are_rounded_not_cut(machine: str) -> None:
    """With equal scores the output is the mean of the rounded values; cut ones would be less."""
    query, value = torch.zeros(1, 33, 20), torch.rand(1, 64, 24) + 1
    out, lse = torch.empty(1, 33, 24), torch.empty(1, 33)
    triton_backend.forward(
        ForwardCall(query, torch.randn(1, 64, 20), value, 1.0, True, out, lse, None)
    )
    expected = _tf32(value).double().mean(1, keepdim=True).float().expand_as(out)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_tf32_gradients(shared: bool, machine: str) -> None:
    """As far from the formula as rounding every operand to 11 bits takes them, and no farther."""
    n, l, s, e, ev = 1, 75, 75 if shared else 41, 24, 20
    torch.manual_seed(0)
    query, value = torch.randn(n, l, e), torch.randn(n, s, ev)
    key, grad_out = None if shared else torch.randn(n, s, e), torch.randn(n, l, ev)
    out, lse = torch.empty(n, l, ev), torch.empty(n, l)
    triton_backend.forward(ForwardCall(query, key, value, 0.2, True, out, lse, None))
    grads = [None if each is None else torch.empty_like(each) for each in (query, key, value)]
    triton_backend.backward(
        BackwardCall(grad_out, query, key, value, out, lse, None, 0.2, True, *grads)
    )
    leaves = [
        None if each is None else each.double().requires_grad_() for each in (query, key, value)
    ]
    keys = leaves[0] if leaves[1] is None else leaves[1]
    exact = (0.2 * leaves[0] @ keys.mT).softmax(-1) @ leaves[2]
    exact.backward(grad_out.double())
    pairs = [(out, exact.detach())]
    pairs += [(g, leaf.grad) for g, leaf in zip(grads, leaves, strict=True) if g is not None]
    for result, wanted in pairs:
        assert (result - wanted).norm() <= 4 * 2**-11 * wanted.norm()
        assert (result - wanted).norm() >= 2**-16 * wanted.norm()


@pytest.mark.parametrize("number", [INF, -INF], ids=str)
def test_small_parts_of_an_operand_beside_infinity(number: float) -> None:
    """A float32 operand is multiplied in three parts, some of which are zero: ``0 * inf`` is NaN."""
    query, key = torch.tensor([[[1.0, 1.1, 0.5]]]), torch.tensor([[[1.0, 1.5, 1.0]]])
    value = torch.tensor([[[number, 1.25, 3.0]]])
    out, lse = torch.empty(1, 1, 3), torch.empty(1, 1)
    triton_backend.forward(ForwardCall(query, key, value, 1.0, False, out, lse, None))
    torch.testing.assert_close(out, value)
    key = torch.tensor([[[-INF, 1.5, 1.0], [1.0, 2.0, 3.0]]])
    value = torch.tensor([[[1.0], [2.0]]])
    triton_backend.forward(ForwardCall(query, key, value, 1.0, False, out[..., :1], lse, None))
    assert out[0, 0, 0] == 2


def test_empty_batch(machine: str) -> None:
    results = run_op(make_inputs(AttentionCase(batch=0)), "triton")
    assert results.out.shape == (0, 16, 5, 7)
    assert results.grad_value.shape == (0, 16, 5, 7)


@pytest.mark.parametrize("layout", ["expanded", "side by side"])
def test_descriptors_of_rows_that_do_not_follow_one_another(layout: str) -> None:
    plan = triton_plan.Plan(hopper=True, math="half", e=16, ev=16, multiprocessors=1)
    if layout == "expanded":
        matrix = torch.randn(1, 9, 16).half().expand(3, -1, -1)
    else:
        matrix = torch.randn(9, 3, 16).half().transpose(0, 1)
    rows = plan.rows(matrix)
    assert torch.equal(rows, matrix)
    assert plan.window(rows, 16, 16).strides == [9 * 16, 16, 1]


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
