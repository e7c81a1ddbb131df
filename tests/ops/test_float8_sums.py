# SPDX-License-Identifier: MIT
"""Why the 8-bit kernel sums values up step by step: a model of what tensor cores keep of sums.

Nothing here runs a kernel. The emulator sums exactly, so it cannot show what this is about.
"""

import math

import torch
from torch import Tensor

from ocnet.ops.oc_attention.float8_reference import POWER, quantised, rounded
from ocnet.testing import FEATURES

KEPT_BITS = 13  # below the largest addend of a product, whose sum goes on to the next one
DEPTH = 32  # of a product of e4m3


def product(left: Tensor, right: Tensor, step: int) -> Tensor:
    """Multiply as tensor cores are known to; every ``step`` of the inner axis is added exactly."""
    total = left.new_zeros(left.shape[0], right.shape[1])
    kept = torch.zeros_like(total)
    for start in range(0, left.shape[1], DEPTH):
        inner = slice(start, start + DEPTH)
        addends = torch.cat([left[:, inner, None] * right[None, inner], kept[:, None]], 1)
        largest = addends.abs().amax(1, keepdim=True).clamp(min=1e-300)
        unit = torch.exp2(largest.log2().floor() - KEPT_BITS)
        kept = ((addends / unit).trunc() * unit).sum(1)
        if (start + DEPTH) % step == 0:
            total, kept = total + kept, torch.zeros_like(kept)
    return total + kept


def operands(side: int) -> tuple[Tensor, Tensor]:
    """Return weights of some rows, and values whose sign is mostly the same."""
    generator = torch.Generator().manual_seed(0)
    query = FEATURES["activated"]((1, 256, side, side), generator).flatten(2).mT
    value = FEATURES["activated"]((1, 16, side, side), generator).flatten(2).mT
    tokens, scales = (t[0].double() for t in quantised(query, 2))
    scores = (tokens[:32] @ tokens.mT) * scales.mT * scales[:32] * (math.log2(math.e) / 16)
    weights = rounded(torch.exp2(POWER + scores - scores.amax(-1, keepdim=True).ceil()))
    return weights.double(), quantised(value, 1)[0][0].double()


def error(actual: Tensor, exact: Tensor) -> float:
    return float((actual - exact).norm() / exact.norm())


def test_steps_keep_what_tensor_cores_lose() -> None:
    losses = {}
    for side in (24, 48):
        weights, values = operands(side)
        exact = weights @ values
        steps = error(product(weights, values, 128), exact)
        losses[side] = error(product(weights, values, side * side), exact)
        assert steps <= 1e-3
    assert losses[48] >= 8e-3
    assert losses[48] >= 2 * losses[24]
