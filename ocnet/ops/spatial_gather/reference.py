# SPDX-License-Identifier: MIT
"""The plain formula, and an eager back end that applies it to a block of positions at a time.

The back end holds the weights of ``POSITIONS`` positions, whatever the size of the map.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ocnet.ops._backends import SUPPORTED, Support
from ocnet.ops.spatial_gather.problem import BackwardCall, ForwardCall, Problem

POSITIONS = 4096


def naive_gather(features: Tensor, logits: Tensor, scale: float = 1.0) -> Tensor:
    """Compute spatial gathering by the plain formula, with all weights.

    ``context[:, :, k] = sum_l softmax_l(scale * logits[:, k, l]) * features[:, :, l]``, all in the
    dtype of the inputs. Differentiable by plain autograd; the tests' oracle (in float64) and the
    benchmarks' baseline.

    Args:
        features: ``(N, C, H, W)``.
        logits: ``(N, K, H, W)``.
        scale: Factor of the logits.

    Returns:
        ``(N, C, K, 1)``.

    Source: OCR (arXiv 1909.11065), equation 2.
    """
    weights = torch.softmax(scale * logits.flatten(2), dim=-1)
    return (features.flatten(2) @ weights.mT).unsqueeze(-1)


def supports(problem: Problem) -> Support:
    """Take every call: any device, any floating dtype."""
    return SUPPORTED


def _blocks(length: int) -> Iterator[slice]:
    return (slice(at, min(at + POSITIONS, length)) for at in range(0, length, POSITIONS))


def _wide(tensor: Tensor) -> Tensor:
    """Widen to float32; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def forward(call: ForwardCall) -> None:
    """Write the outputs of the call."""
    features, logits, scale, _tf32, out, lse, residual = call
    top = torch.full_like(lse, -torch.inf)
    total = torch.zeros_like(lse)
    sums = torch.zeros(out.shape, dtype=lse.dtype, device=out.device)
    for rows in _blocks(features.shape[1]):
        scores = scale * _wide(logits[:, rows])
        raised = torch.maximum(top, scores.amax(1))
        # A region of -inf so far subtracts 0: -inf - -inf would be NaN for good.
        shift = torch.where(raised == -torch.inf, 0.0, raised)
        weights, decay = torch.exp(scores - shift.unsqueeze(1)), torch.exp(top - shift)
        total = total * decay + weights.sum(1)
        sums = sums * decay.unsqueeze(-1) + weights.mT @ _wide(features[:, rows])
        top = raised
    lse.copy_(top + torch.log(total))
    context = sums / total.unsqueeze(-1)
    out.copy_(context)
    if residual is not None:
        # Of an infinity nothing is left: the difference would be NaN.
        residual.copy_(torch.where(out.isfinite(), context - _wide(out), 0.0))


def backward(call: BackwardCall) -> None:
    """Write the gradients that are not ``None``."""
    grad_out, features, logits, out, lse, residual, scale, _tf32, *grads = call
    grad_features, grad_logits = grads
    d_out, context = _wide(grad_out), _wide(out)
    if residual is not None:
        context = context + _wide(residual)
    # An infinite gradient makes the score gradients of its region NaN, as the plain formula's are.
    delta = (d_out * context + (d_out - d_out)).sum(-1)
    for rows in _blocks(features.shape[1]):
        weights = torch.exp(scale * _wide(logits[:, rows]) - lse.unsqueeze(1))
        if grad_features is not None:
            grad_features[:, rows] = (weights @ d_out).to(grad_features.dtype)
        if grad_logits is not None:
            d_weights = _wide(features[:, rows]) @ d_out.mT
            d_scores = scale * weights * (d_weights - delta.unsqueeze(1))
            grad_logits[:, rows] = d_scores.to(grad_logits.dtype)
