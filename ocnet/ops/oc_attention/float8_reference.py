# SPDX-License-Identifier: MIT
"""Attention in 8 bits (e4m3) as the kernels compute it, by eager operations on blocks of query rows.

Runs everywhere, so the error of 8 bits can be measured without the kernels; and they are tested
against it.
"""

import math

import torch
from torch import Tensor

from ocnet.ops._backends import SUPPORTED, Support
from ocnet.ops.oc_attention.problem import Float8Call, Problem
from ocnet.ops.oc_attention.reference import row_blocks

LARGEST = 448.0  # of e4m3
# Weights are rounded as 2 ** POWER times those whose maximum is between 1/2 and 1.
POWER = 8


def supports(problem: Problem) -> Support:
    """Take every call of 16 bits: any device."""
    return SUPPORTED if problem.dtype.itemsize == 2 else Support(False, "it takes maps of 16 bits")


def quantised(numbers: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return numbers in 8 bits, widened to float32, and the scales that they were divided by.

    Args:
        numbers: Any map.
        axis: What has one scale for all of its elements: the largest becomes 448.
    """
    wide = numbers.float()
    largest = wide.abs().amax(axis, keepdim=True)
    scales = torch.where(largest == 0, 1.0, largest / LARGEST)
    return rounded(wide / scales), scales


def rounded(numbers: Tensor) -> Tensor:
    """Round to e4m3 and widen again."""
    return numbers.to(torch.float8_e4m3fn).float()


def forward(call: Float8Call) -> None:
    """Write the output of the call."""
    queries, query_scales = quantised(call.query, 2)
    keys, key_scales = (queries, query_scales) if call.key is None else quantised(call.key, 2)
    values, value_scales = quantised(call.value, 1)
    key_factors = key_scales.mT * (call.scale * math.log2(math.e))
    for rows in row_blocks(queries.shape[1]):
        scores = (queries[:, rows] @ keys.mT) * key_factors * query_scales[:, rows]
        reference = scores.amax(-1, keepdim=True).ceil()
        reference = torch.where(reference == -torch.inf, 0.0, reference)
        weights = rounded(torch.exp2(scores + (POWER - reference)))
        context = (weights @ values) * value_scales / weights.sum(-1, keepdim=True)
        call.out[:, rows] = context.to(call.out.dtype)
