# SPDX-License-Identifier: MIT
"""The Function of calls that somebody looks at: compiled, in a mode or a transform. Made of the ops.

Of a call without ``inplace`` and group the pure op is all there is; this is for the others.
"""

from typing import Any

import torch
from torch import Tensor

from ocnet.ops.inplace_abn import collectives
from ocnet.ops.inplace_abn.autograd import in_their_dtypes
from ocnet.ops.inplace_abn.surroundings import OVER_COPY


class Transfer(torch.autograd.Function):
    """Normalise and activate over a copy of the input, or with the statistics of all ranks, or both.

    ``apply(x, residual, weight, bias, slope, running_mean, running_var, training, momentum, eps,
    *pointwise, where, group, layer)`` returns the map, mean, variance, the moved running statistics
    and the count of all ranks.
    """

    @staticmethod
    def forward(
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        slope: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        scale_eps: float,
        activation: str,
        param: float,
        signed: bool,
        backend: str,
        where: str,
        group: tuple[str, int] | None,
        layer: str,
    ) -> tuple[Tensor, ...]:
        """Return the map, mean, variance, new running statistics, and the count."""
        packed, total = None, x.new_empty((0,))
        if group is not None:
            packed = collectives.gather(torch.ops.ocnet.inplace_abn_stats(x, backend), group, layer)
            total = packed[:, -1].sum(0, keepdim=True)
        rest = (
            residual, weight, bias, slope, packed, running_mean, running_var, training, momentum,
            eps, scale_eps, activation, param, signed, backend,
        )  # fmt: skip
        if where == OVER_COPY:
            out = x.clone()
            return (out, *torch.ops.ocnet.inplace_abn_fwd_(out, *rest), total)
        return (*torch.ops.ocnet.inplace_abn_fwd(x, *rest), total)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save the output, never the input."""
        (
            _x, residual, weight, bias, slope, _mean, running_var, ctx.training, _momentum, ctx.eps,
            *ctx.pointwise, _where, ctx.group, ctx.layer,
        ) = inputs  # fmt: skip
        out, mean, var, new_mean, new_var, total = output
        ctx.mark_non_differentiable(mean, var, new_mean, new_var, total)
        used = var if ctx.training else running_var
        ctx.save_for_backward(out, residual, weight, bias, slope, used, total)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor, *_others: Any) -> tuple[Any, ...]:
        """Return the gradients of x, residual, weight, bias and slope."""
        out, residual, weight, bias, slope, var, total = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[:5])
        maps = (out, residual, grad_out, weight, bias, slope)
        if ctx.group is None:
            grads = torch.ops.ocnet.inplace_abn_bwd(
                *maps, var, ctx.training, ctx.eps, *ctx.pointwise, needed
            )
        else:
            sums, *vectors = torch.ops.ocnet.inplace_abn_bwd_reduce(
                *maps, total, *ctx.pointwise, needed[2:]
            )
            # All ranks meet here, also those whose x wants no gradient.
            sums = collectives.add(sums, ctx.group, ctx.layer)
            grads = torch.ops.ocnet.inplace_abn_bwd_apply(
                *maps, var, sums, total, ctx.eps, *ctx.pointwise, needed[:2]
            )
            grads = (*grads, *vectors)
        return (*in_their_dtypes(grads, needed, (weight, bias, slope)), *[None] * 13)
