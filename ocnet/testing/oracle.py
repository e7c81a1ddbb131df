# SPDX-License-Identifier: MIT
"""Runs a call three ways: through the op, by the plain formula in its dtype, and in float64."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ocnet.ops import oc_attention
from ocnet.ops.oc_attention.reference import naive_attention
from ocnet.testing.inputs import AttentionInputs


@dataclass(frozen=True)
class Results:
    """Output and gradients of one call; ``grad_key`` is ``None`` for shared keys."""

    out: Tensor
    grad_query: Tensor
    grad_key: Tensor | None
    grad_value: Tensor

    def named(self) -> dict[str, Tensor]:
        """Return what is there, by name."""
        return {name: t for name, t in vars(self).items() if t is not None}


def results_of(attend: Callable[..., Tensor], inputs: AttentionInputs) -> Results:
    """Run a function of maps, forward and backward."""
    shared = inputs.key is inputs.query
    leaves = [inputs.query, inputs.value] if shared else [inputs.query, inputs.key, inputs.value]
    out = attend(inputs.query, inputs.key, inputs.value, scale=inputs.scale)
    grads = torch.autograd.grad(out, leaves, inputs.grad_out)
    return Results(out.detach(), grads[0], None if shared else grads[1], grads[-1])


def run_op(inputs: AttentionInputs, backend: str) -> Results:
    """Run the op, forward and backward."""
    return results_of(
        lambda *maps, scale: oc_attention(*maps, scale=scale, backend=backend), inputs
    )


def _plain_copy(inputs: AttentionInputs, dtype: torch.dtype, reverse: bool) -> AttentionInputs:
    def leaf(t: Tensor, keys: bool) -> Tensor:
        dense = t.detach().to(dtype).contiguous()
        return (dense.flip(2, 3) if keys and reverse else dense).requires_grad_()

    shared = inputs.key is inputs.query
    # Reversed keys cannot be shared, so the roles are separate leaves; _joined adds them again.
    query = leaf(inputs.query, keys=False)
    key = query if shared and not reverse else leaf(inputs.key, keys=True)
    return AttentionInputs(
        query, key, leaf(inputs.value, keys=True), inputs.grad_out.to(dtype), inputs.scale
    )


def oracle_results(inputs: AttentionInputs) -> Results:
    """Run the plain formula in float64 on the very numbers of the inputs."""
    return results_of(naive_attention, _plain_copy(inputs, torch.float64, reverse=False))


def summed_magnitudes(inputs: AttentionInputs) -> Results:
    """Sum the absolute values of the terms that each result is the sum of.

    What rounding in a sum is relative to: the result itself can be far smaller, as the gradients of
    query and key are where the softmax is peaked.
    """
    plain = _plain_copy(inputs, torch.float64, reverse=False)
    query, key, value, grad = (
        t.detach().flatten(2).mT for t in (plain.query, plain.key, plain.value, plain.grad_out)
    )
    factor = query.shape[-1] ** -0.5 if inputs.scale is None else inputs.scale
    weights = torch.softmax(factor * query @ key.mT, dim=-1)
    out = weights @ value.abs()
    row = (grad.abs() * (weights @ value).abs()).sum(-1, keepdim=True)
    scores = abs(factor) * weights * (grad.abs() @ value.abs().mT + row)
    grad_query, grad_key = scores @ key.abs(), scores.mT @ query.abs()
    shared = inputs.key is inputs.query

    def as_map(rows: Tensor, like: Tensor) -> Tensor:
        return rows.mT.reshape(like.shape[0], rows.shape[-1], *like.shape[2:])

    return Results(
        as_map(out, inputs.query),
        as_map(grad_query + grad_key if shared else grad_query, inputs.query),
        None if shared else as_map(grad_key, inputs.key),
        as_map(weights.mT @ grad.abs(), inputs.value),
    )


def eager_results(inputs: AttentionInputs) -> tuple[Results, Results]:
    """Run the plain formula in the dtype of the inputs, with the keys in order and in reverse.

    The difference between the two is what the order of summation alone makes; it is what bounds
    float64, where the first equals the oracle.
    """
    dtype = inputs.query.dtype
    forward = results_of(naive_attention, _plain_copy(inputs, dtype, reverse=False))
    reverse = results_of(naive_attention, _plain_copy(inputs, dtype, reverse=True))
    grad_key = None if reverse.grad_key is None else reverse.grad_key.flip(2, 3)
    grad_query = reverse.grad_query
    if inputs.key is inputs.query and grad_key is not None:
        grad_query, grad_key = grad_query + grad_key, None
    return forward, Results(reverse.out, grad_query, grad_key, reverse.grad_value.flip(2, 3))
