# SPDX-License-Identifier: MIT
"""How far two computations of attention in 8 bits may be apart that round their sums differently."""

import math

import torch
from torch import Tensor

from ocnet.ops.oc_attention.float8_reference import POWER, quantised, rounded
from ocnet.ops.oc_attention.problem import Float8Call


def allowed_difference(call: Float8Call, product: float = 2.0**-19) -> Tensor:
    """Bound ``|a - b|`` for every element of the output.

    Both have the same operands in 8 bits. Their scores are sums with other roundings, so a weight that
    lies near the middle between two numbers of e4m3 may become either. Weights that are subnormal
    there may have been rounded when the maximum of their row was still a smaller one: each is right to
    half a step, 2^-10, and a maximum that is near a power of two may have been rounded up or not.

    Args:
        call: What both computed.
        product: What a product of 32 numbers may lose, relative to the sum of their magnitudes: 32
            roundings of float32, unless tensor cores keep fewer bits.
    """
    query, query_scales = (t.double() for t in quantised(call.query, 2))
    key, key_scales = (
        (query, query_scales) if call.key is None else (t.double() for t in quantised(call.key, 2))
    )
    value, value_scales = (t.double() for t in quantised(call.value, 1))
    factors = key_scales.mT * query_scales * (abs(call.scale) * math.log2(math.e))
    scores = (query @ key.mT) * factors * math.copysign(1, call.scale)
    reference = scores.amax(-1, keepdim=True).ceil()
    additions = -(-query.shape[-1] // 32) * product * (query.abs() @ key.abs().mT) * factors
    slack = additions + 2.0**-22 * (POWER + scores.abs() + reference.abs())
    off = math.log(2) * slack + 2.0**-21
    weights = torch.exp2(POWER + scores - reference)
    spread = rounded(weights * (1 + off)).double() - rounded(weights * (1 - off)).double()
    spread += (weights < 2.0**-5) * 2.0**-8
    near = rounded(weights).double()
    total, lost = near.sum(-1, keepdim=True), spread.sum(-1, keepdim=True)
    context = near @ value / total
    apart = spread @ value.abs() + context.abs() * lost
    # The products of a step of 128 keys, and the sum of the steps.
    apart += (4 * product + 2.0**-24 * key.shape[1]) * (near @ value.abs())
    # Both are rounded to the dtype of the maps.
    apart = apart / (total - lost)
    last = torch.finfo(call.out.dtype)
    apart += last.eps * (context.abs() + apart)
    return apart * value_scales + last.eps * last.smallest_normal
