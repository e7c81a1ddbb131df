# SPDX-License-Identifier: MIT
"""Every back end against the plain formula in float64: values, gradients, layouts, edges."""

import dataclasses
import functools

import pytest
import torch

from ocnet.ops import oc_attention
from ocnet.testing import (
    AttentionCase,
    assert_as_accurate,
    assert_same_nonfinite,
    eager_results,
    make_inputs,
    oracle_results,
    random_cases,
    run_op,
    summed_magnitudes,
)
from tests.ops.conftest import HOPPER_SUBJECTS

INF, NAN = float("inf"), float("nan")


@pytest.fixture(params=HOPPER_SUBJECTS)
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


def check(case: AttentionCase, backend: str, device: str, seed: int = 0) -> None:
    inputs = make_inputs(case, seed, device)
    actual = run_op(inputs, backend).named()
    oracle = oracle_results(inputs).named()
    eager = [run.named() for run in eager_results(inputs)]
    sizes = summed_magnitudes(inputs).named()
    assert actual.keys() == oracle.keys()
    keys = inputs.key.shape[2] * inputs.key.shape[3]
    terms = case.e + case.ev + keys + inputs.query.shape[2] * inputs.query.shape[3]
    for name, result in actual.items():
        assert result.dtype == case.dtype
        runs = [run[name] for run in eager]
        assert_as_accurate(f"{case}: {name}", result, oracle[name], runs, sizes[name], terms)


@pytest.mark.parametrize("seed", range(20))
def test_random_legal_calls(backend: str, device: str, dtypes, seed: int, small: bool) -> None:
    count, side = (3, 9) if small else (10, 13)
    for number, case in enumerate(random_cases(count, seed, dtypes, side)):
        check(case, backend, device, seed=100 * seed + number)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("e_ev", [(256, 256), (128, 256), (256, 512), (512, 64)], ids=str)
def test_published_channels(
    backend: str, device: str, dtypes, e_ev, shared: bool, small: bool
) -> None:
    size = (3, 5) if small else (11, 17)
    for dtype in dtypes:
        case = AttentionCase(batch=1, e=e_ev[0], ev=e_ev[1], size=size, dtype=dtype, shared=shared)
        check(case, backend, device)


def test_more_tokens_than_any_tile(backend: str, device: str, small: bool) -> None:
    size, other = ((9, 15), (10, 13)) if small else ((29, 37), (41, 23))
    for shared in (True, False):
        key_size = None if shared else other
        check(AttentionCase(1, 24, 40, size, key_size, shared=shared), backend, device)


def test_one_token(backend: str, device: str, dtypes) -> None:
    for dtype in dtypes:
        case = AttentionCase(batch=1, e=1, ev=1, size=(1, 1), dtype=dtype, shared=True)
        check(case, backend, device)


def test_empty_batch(backend: str, device: str) -> None:
    inputs = make_inputs(AttentionCase(batch=0), device=device)
    results = run_op(inputs, backend)
    assert results.out.shape == (0, 16, 5, 7)
    assert results.grad_value.shape == inputs.value.shape


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_output_has_the_layout_of_the_query(backend: str, device: str, layout: str) -> None:
    inputs = make_inputs(AttentionCase(e=8, ev=12, layout=layout), device=device)
    results = run_op(inputs, backend)
    wanted = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert results.out.is_contiguous(memory_format=wanted)
    assert results.grad_query.is_contiguous(memory_format=wanted)
    assert results.grad_value.is_contiguous(memory_format=wanted)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_runs_repeat_bit_for_bit(
    backend: str, device: str, dtypes, shared: bool, small: bool
) -> None:
    batch, size, repeats = (1, (7, 10), 1) if small else (2, (17, 19), 19)
    for dtype in dtypes:
        case = AttentionCase(batch, 33, 20, size, dtype=dtype, shared=shared)
        inputs = make_inputs(case, 3, device)
        first = run_op(inputs, backend).named()
        for _ in range(repeats):
            again = run_op(inputs, backend).named()
            for name, tensor in first.items():
                assert torch.equal(tensor, again[name]), f"{name} differs between runs"


def test_large_features_do_not_overflow_half(backend: str, device: str) -> None:
    """Multiplying before scaling in float16, as published, gives inf and then NaN here."""
    inputs = make_inputs(
        AttentionCase(1, 256, 16, (6, 6), dtype=torch.float16, shared=True), device=device
    )
    loud = dataclasses.replace(
        inputs, query=(q := (inputs.query.detach() * 40).requires_grad_()), key=q
    )
    results = run_op(loud, backend)
    for name, tensor in results.named().items():
        assert tensor.isfinite().all(), name


def _planted(where: str, number: float, shared: bool, device: str):
    inputs = make_inputs(AttentionCase(2, 8, 6, (9, 10), (7, 11), shared=shared), 5, device)
    with torch.no_grad():
        getattr(inputs, where)[0, 2, 3, 4] = number
    return inputs


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("number", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("where", ["query", "key", "value", "grad_out"])
def test_nonfinite_input_stays_where_the_formula_puts_it(
    backend: str, device: str, where: str, number: float, shared: bool
) -> None:
    inputs = _planted(where, number, shared, device)
    actual, oracle = run_op(inputs, backend).named(), oracle_results(inputs).named()
    # An infinite incoming gradient makes inf - inf, whose kind depends on how the row's mean is taken.
    tell_apart = where != "grad_out"
    for name, tensor in actual.items():
        label = f"{name} with {number} in {where}"
        assert_same_nonfinite(label, tensor, oracle[name], tell_apart=tell_apart)


@pytest.mark.parametrize("dead_keys", [1, 40, 600])
def test_row_recovers_from_keys_at_minus_infinity(
    backend: str, device: str, dead_keys: int
) -> None:
    """Scores of -inf in the first tiles must not turn later, finite ones into NaN."""
    query = torch.ones(1, 4, 3, 5, device=device)
    key = torch.randn(1, 4, 1, dead_keys + 7, device=device)
    key[:, :, :, :dead_keys] = -INF
    value = torch.randn(1, 5, 1, dead_keys + 7, device=device)
    out = oc_attention(query, key, value, backend=backend)
    alive = oc_attention(query, key[..., dead_keys:], value[..., dead_keys:], backend="reference")
    torch.testing.assert_close(out, alive)


def test_row_of_minus_infinity_is_nan(backend: str, device: str) -> None:
    query = torch.ones(1, 4, 2, 2, device=device)
    key = torch.full((1, 4, 3, 3), -INF, device=device)
    assert (
        oc_attention(query, key, torch.randn(1, 5, 3, 3, device=device), backend=backend)
        .isnan()
        .all()
    )


@pytest.mark.parametrize("wanted", ["query", "key", "value", "query+value", "key+value"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_only_wanted_gradients(backend: str, device: str, wanted: str, shared: bool) -> None:
    if shared and "key" in wanted:
        pytest.skip("shared keys are the query")
    case = AttentionCase(1, 12, 9, (6, 8), (5, 9), shared=shared)
    inputs = make_inputs(case, device=device)
    full = run_op(inputs, backend)
    names = wanted.split("+")
    for name in ("query", "key", "value"):
        if not (shared and name == "key"):
            getattr(inputs, name).requires_grad_(name in names)
    out = oc_attention(inputs.query, inputs.key, inputs.value, backend=backend)
    grads = torch.autograd.grad(out, [getattr(inputs, name) for name in names], inputs.grad_out)
    for name, grad in zip(names, grads, strict=True):
        assert torch.equal(grad, getattr(full, f"grad_{name}")), name


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_gradcheck(
    backend: str, device: str, dtypes, shared: bool, layout: str, small: bool
) -> None:
    if torch.float64 not in dtypes:
        pytest.skip(f"{backend} has no float64")
    # The fast mode projects the Jacobian on random directions instead of running once per element.
    gradcheck = functools.partial(torch.autograd.gradcheck, fast_mode=small)
    case = AttentionCase(2, 3, 4, (3, 4), (2, 5), torch.float64, layout, shared, scale=0.7)
    inputs = make_inputs(case, device=device)
    if shared:
        assert gradcheck(
            lambda q, v: oc_attention(q, q, v, scale=0.7, backend=backend),
            (inputs.query, inputs.value),
        )
    else:
        assert gradcheck(
            lambda q, k, v: oc_attention(q, k, v, scale=0.7, backend=backend),
            (inputs.query, inputs.key, inputs.value),
        )


def test_shared_and_separate_keys_agree(backend: str, device: str) -> None:
    """The symmetric backward's one gradient is the sum of the general one's two."""
    inputs = make_inputs(
        AttentionCase(1, 20, 12, (9, 11), dtype=torch.float32, shared=True), device=device
    )
    twin = inputs.query.detach().clone().requires_grad_()
    apart = run_op(dataclasses.replace(inputs, key=twin), backend)
    together = run_op(inputs, backend)
    torch.testing.assert_close(together.out, apart.out)
    torch.testing.assert_close(together.grad_query, apart.grad_query + apart.grad_key)
    torch.testing.assert_close(together.grad_value, apart.grad_value)
