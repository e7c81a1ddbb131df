# SPDX-License-Identifier: MIT
"""The Function of plain eager calls: the steps themselves, because the dispatcher takes longer than they do."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocnet.ops.inplace_abn import collectives, steps
from ocnet.ops.inplace_abn.autograd import in_their_dtypes
from ocnet.ops.inplace_abn.layout import empty_like_map, wide_vectors
from ocnet.ops.inplace_abn.problem import accumulator
from ocnet.ops.inplace_abn.steps import Pointwise
from ocnet.ops.inplace_abn.surroundings import OVER_INPUT


class Options(NamedTuple):
    """What a call is told besides its tensors.

    Attributes:
        training: Whether statistics are those of the batch.
        momentum: Weight of the batch in the running statistics; a tensor stays on its device.
        eps: Added to the variance.
        pointwise: Scale, activation and back end.
        where: Where the result goes, see ``surroundings.py``.
        group: Name and size of the group to synchronise over.
        layer: Name of the layer in errors.
    """

    training: bool
    momentum: float | Tensor
    eps: float
    pointwise: Pointwise
    where: str
    group: tuple[str, int] | None
    layer: str


class Normalise(torch.autograd.Function):
    """``apply(x, residual, weight, bias, slope, running_mean, running_var, options)`` returns the map."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        slope: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        options: Options,
    ) -> Tensor:
        """Write the map, into the input or beside it, and move the running statistics."""
        packed, total = None, None
        if options.group is not None:
            packed = collectives.gather(
                steps.stats(x, options.pointwise.backend), options.group, options.layer
            )
            total = packed[:, -1].sum(0, keepdim=True)
            check_total(x, total)
        out = x.detach() if options.where == OVER_INPUT else empty_like_map(x)
        running = (running_mean, running_var)
        var = _run(x, out, residual, (weight, bias, slope), packed, total, running, options)
        if options.where == OVER_INPUT:
            # What was kept of the input by others must be found to have changed.
            torch.autograd.graph.increment_version(x)
        ctx.save_for_backward(out, residual, weight, bias, slope, var, total)
        ctx.options = options
        return out

    @staticmethod
    def backward(ctx: Any, *grads_out: Tensor) -> tuple[Any, ...]:
        """Return the gradients of x, residual, weight, bias and slope."""
        out, residual, weight, bias, slope, var, total = ctx.saved_tensors
        options, needed = ctx.options, ctx.needs_input_grad[:5]
        maps, vectors = (out, residual, grads_out[0]), (weight, bias, slope)
        if torch.is_grad_enabled():
            # The op, of which a second derivative is refused in words.
            grads = torch.ops.ocnet.inplace_abn_bwd(
                *maps, *vectors, var, options.training, options.eps, *options.pointwise, needed
            )
        elif options.group is None:
            grads = steps.backward(
                *maps, vectors, var, options.training, options.eps, options.pointwise, needed
            )
        else:
            sums, of_vectors = steps.reduce(*maps, vectors, total, options.pointwise, needed[2:])
            # All ranks meet here, also those whose x wants no gradient.
            sums = collectives.add(sums, options.group, options.layer)
            of_maps = steps.apply(
                *maps, vectors, var, sums, total, options.eps, options.pointwise, needed[:2]
            )
            grads = [*of_maps, *of_vectors]
        return (*in_their_dtypes(grads, needed, vectors), None, None, None)


def _run(
    x: Tensor,
    out: Tensor,
    residual: Tensor | None,
    vectors: steps.Vectors,
    packed: Tensor | None,
    total: Tensor | None,
    running: tuple[Tensor | None, Tensor | None],
    options: Options,
) -> Tensor | None:
    """Run the forward step, move the running statistics, and return the variance that normalised."""
    training, momentum, eps, pointwise, *_ = options
    if not training:
        steps.forward(
            x, out, residual, vectors, None, running, (False, 0.0, eps), pointwise, (None,) * 4
        )
        return running[1]
    c, on_host = x.shape[1], not isinstance(momentum, Tensor)
    mean, var = steps.empty_vector(x, c), steps.empty_vector(x, c)
    # What kernels move themselves: the statistics, or a copy in the accumulation dtype.
    moved = wide_vectors(running, accumulator(x.dtype))
    told: Sequence[Tensor | None] = moved if on_host else (None, None)
    steps.forward(
        x, out, residual, vectors, packed, told,
        (True, float(momentum) if on_host else 0.0, eps), pointwise, (mean, var, *told),
    )  # fmt: skip
    if isinstance(momentum, Tensor):
        move_by(running, (mean, var), momentum, x.numel() // c if total is None else total)
        return var
    for values, new in zip(running, moved, strict=True):
        if values is None or new is None:
            continue
        if new is values:
            torch.autograd.graph.increment_version(values)
        else:
            values.copy_(new)
    return var


def move_by(
    running: tuple[Tensor | None, Tensor | None],
    batch: tuple[Tensor, Tensor],
    momentum: Tensor,
    count: Any,
) -> None:
    """Move running statistics towards those of the batch by a momentum that is on the device."""
    fewer = (count - 1).clamp(min=1) if isinstance(count, Tensor) else max(count - 1, 1)
    mean, var = batch
    for values, new in zip(running, (mean, var * (count / fewer)), strict=True):
        if values is not None:
            values.lerp_(new.to(values.dtype), momentum.to(values.dtype))


def check_total(x: Tensor, total: Tensor) -> None:
    """Refuse one number per channel over all ranks. Read only where this rank has no more."""
    if torch.compiler.is_compiling() or x.numel() > x.shape[1]:
        return
    numbers = int(total.item())
    if numbers <= 1:
        raise ValueError(
            "inplace_abn: x must have more than one number per channel over all ranks in training, "
            f"because the variance of one number is zero, got {numbers}"
        )
