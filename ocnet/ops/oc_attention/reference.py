# SPDX-License-Identifier: MIT
"""The plain formula, and an eager back end that applies it to a block of query rows at a time.

The back end never holds more than ``ROWS x S`` scores, so ``auto`` may end here without building the
matrix that this project exists to avoid.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ocnet.ops._backends import SUPPORTED, Support
from ocnet.ops.oc_attention.problem import BackwardCall, ForwardCall, Problem

ROWS = 512


def naive_attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None
) -> Tensor:
    """Compute pixel-wise attention by the plain formula, with the whole ``L x S`` matrix.

    ``out[:, l] = sum_s softmax_s(scale * <query_l, key_s>) * value_s``, all in the dtype of the inputs.
    Differentiable by plain autograd; the tests' oracle (in float64) and the benchmarks' baseline.

    Args:
        query: ``(N, E, H, W)``.
        key: ``(N, E, Hk, Wk)``.
        value: ``(N, Ev, Hk, Wk)``.
        scale: Factor of the scores; ``E ** -0.5`` by default.

    Returns:
        ``(N, Ev, H, W)``, contiguous.

    Source: OCNet (arXiv 1809.00916), equations 1 and 2.
    """
    n, e, h, w = query.shape
    factor = e**-0.5 if scale is None else scale
    scores = factor * (query.flatten(2).transpose(1, 2) @ key.flatten(2))
    context = torch.softmax(scores, dim=-1) @ value.flatten(2).transpose(1, 2)
    return context.transpose(1, 2).reshape(n, value.shape[1], h, w)


def supports(problem: Problem) -> Support:
    """Take every call: any device, any floating dtype."""
    return SUPPORTED


def row_blocks(length: int) -> Iterator[slice]:
    """Cut query rows into blocks."""
    return (slice(start, min(start + ROWS, length)) for start in range(0, length, ROWS))


def _wide(tensor: Tensor) -> Tensor:
    """Widen to float32; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _exp_shifted(scores: Tensor, shift: Tensor) -> Tensor:
    return torch.exp(scores - shift.unsqueeze(-1))


def forward(call: ForwardCall) -> None:
    """Write the outputs of the call."""
    query, key, value, scale, _tf32, out, lse, residual = call
    keys = _wide(query if key is None else key).mT
    values = _wide(value)
    for rows in row_blocks(query.shape[1]):
        scores = scale * (_wide(query[:, rows]) @ keys)
        top = scores.amax(-1)
        # Not logsumexp: a row with a +inf score must be NaN, as its softmax is.
        lse[:, rows] = top + torch.log(_exp_shifted(scores, top).sum(-1))
        context = torch.softmax(scores, dim=-1) @ values
        out[:, rows] = context.to(out.dtype)
        if residual is not None:
            residual[:, rows] = (context - _wide(out[:, rows])).to(residual.dtype)


def backward(call: BackwardCall) -> None:
    """Write the gradients that are not ``None``."""
    grad_out, query, key, value, out, lse, residual, scale, _tf32, *grads = call
    grad_query, grad_key, grad_value = grads
    keys, values = _wide(query if key is None else key), _wide(value)
    want_scores = grad_query is not None or grad_key is not None
    want_key = grad_key is not None or (key is None and grad_query is not None)
    d_keys = torch.zeros_like(keys) if want_key else None
    d_values = torch.zeros_like(values) if grad_value is not None else None
    d_queries = torch.empty_like(_wide(query)) if grad_query is not None else None
    for rows in row_blocks(query.shape[1]):
        queries, d_out = _wide(query[:, rows]), _wide(grad_out[:, rows])
        weights = _exp_shifted(scale * (queries @ keys.mT), lse[:, rows])
        if d_values is not None:
            d_values += weights.mT @ d_out
        if not want_scores:
            continue
        context = _wide(out[:, rows])
        if residual is not None:
            context = context + _wide(residual[:, rows])
        delta = (d_out * context).sum(-1, keepdim=True)
        d_scores = scale * weights * (d_out @ values.mT - delta)
        if d_queries is not None:
            d_queries[:, rows] = d_scores @ keys
        if d_keys is not None:
            d_keys += d_scores.mT @ queries
    if grad_query is not None and d_queries is not None:
        grad_query.copy_(d_queries if key is not None or d_keys is None else d_queries + d_keys)
    if grad_key is not None and d_keys is not None:
        grad_key.copy_(d_keys)
    if grad_value is not None and d_values is not None:
        grad_value.copy_(d_values)
