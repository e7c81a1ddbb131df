# SPDX-License-Identifier: MIT
"""The assertions must fail on planted errors, and name them."""

import pytest
import torch

from ocnet.testing import (
    AttentionCase,
    assert_as_accurate,
    assert_same_nonfinite,
    eager_results,
    make_inputs,
    oracle_results,
    summed_magnitudes,
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def _sign(t: torch.Tensor) -> torch.Tensor:
    return -t


def _scale(t: torch.Tensor) -> torch.Tensor:
    return 1.05 * t


def _missing_row(t: torch.Tensor) -> torch.Tensor:
    t = t.clone()
    t[:, :, -1, -1] = 0
    return t


def _bias(t: torch.Tensor) -> torch.Tensor:
    return t + 0.05 * t.abs().mean()


def _swapped_rows(t: torch.Tensor) -> torch.Tensor:
    return torch.cat([t[:, :, 1:2], t[:, :, :1], t[:, :, 2:]], dim=2)


def _judge(name: str, dtype: torch.dtype, change) -> None:
    inputs = make_inputs(AttentionCase(2, 24, 20, (9, 11), (8, 7), dtype))
    oracle = oracle_results(inputs).named()[name]
    eager = [run.named()[name] for run in eager_results(inputs)]
    magnitude = summed_magnitudes(inputs).named()[name]
    actual = change(oracle).to(dtype)
    assert_as_accurate(name, actual, oracle, eager, magnitude, terms=24 + 20 + 99 + 56)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["out", "grad_query", "grad_key", "grad_value"])
def test_the_rounded_truth_passes(name: str, dtype: torch.dtype) -> None:
    _judge(name, dtype, lambda t: t)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["out", "grad_query", "grad_key", "grad_value"])
@pytest.mark.parametrize("planted", [_sign, _scale, _missing_row, _bias, _swapped_rows])
def test_planted_errors_fail(name: str, dtype: torch.dtype, planted) -> None:
    with pytest.raises(AssertionError, match=name):
        _judge(name, dtype, planted)


def test_a_result_that_was_never_written_fails() -> None:
    with pytest.raises(AssertionError, match="not finite"):
        _judge("out", torch.float32, torch.empty_like)


def test_uninitialised_memory_is_nan() -> None:
    assert torch.empty(1000).isnan().all()
    assert torch.empty(1000, dtype=torch.bfloat16).isnan().all()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_misplaced_nonfinite_fails(number: float) -> None:
    oracle = torch.zeros(3, 4)
    oracle[1, 2] = number
    assert_same_nonfinite("x", oracle.clone(), oracle)
    with pytest.raises(AssertionError, match="1 missing"):
        assert_same_nonfinite("x", torch.zeros(3, 4), oracle)
    with pytest.raises(AssertionError, match="1 missing"):
        assert_same_nonfinite("x", torch.zeros(3, 4), oracle, tell_apart=False)
    moved = oracle.roll(1)
    with pytest.raises(AssertionError, match=r"1 .* too many, 1 missing"):
        assert_same_nonfinite("x", moved, oracle)
