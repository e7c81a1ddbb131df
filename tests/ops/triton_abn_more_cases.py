# SPDX-License-Identifier: MIT
"""Every combination of operands, in Triton's interpreter: minutes, so run on request only."""

import itertools

import pytest
import torch

from ocnet.ops.inplace_abn import triton_backend
from ocnet.ops.inplace_abn.problem import LEAKY_RELU, RELU
from tests.ops.triton_abn_calls import FP16, FP32, NAMES, Case, check
from tests.ops.triton_abn_tiles import SHAPES, use_small_tiles


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("dtype", [FP32, FP16], ids=str)
def test_many_calls(
    activation: int, shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_tiles(monkeypatch)
    flags = itertools.product((True, False), repeat=4)
    for residual, affine, signed, training in flags:
        if activation == RELU and training:
            continue
        slope = activation == LEAKY_RELU and residual
        case = Case(
            shape, dtype, activation, 0.3, slope, residual, affine, signed, training, mean=2.0
        )
        check(case, triton_backend, monkeypatch)
