# SPDX-License-Identifier: MIT
"""The ops ``ocnet::inplace_abn_*``: schemas, fakes, autograd. What they do is in ``steps.py``.

``inplace_abn_fwd`` is pure and differentiable. ``inplace_abn_fwd_`` overwrites its input; it and the
steps of the synchronised form are called by ``ocnet.ops.inplace_abn.transfer`` only.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ocnet.ops.inplace_abn import steps
from ocnet.ops.inplace_abn.layout import empty_like_map, is_matrix
from ocnet.ops.inplace_abn.steps import Pointwise, empty_vector

_VECTORS = "Tensor? weight, Tensor? bias, Tensor? slope"
_POINTWISE = "float scale_eps, str activation, float param, bool signed, str backend"
_FORWARD = (
    f"Tensor? residual, {_VECTORS}, Tensor? packed, Tensor? running_mean, Tensor? running_var, "
    f"bool training, float momentum, float eps, {_POINTWISE}"
)
_MAPS = f"Tensor out, Tensor? residual, Tensor grad_out, {_VECTORS}"
# Results go to conv layers as they are: Inductor must not copy them into a layout of its choice.
_TAGS = (torch.Tag.flexible_layout,)


def _empty_statistics(
    x: Tensor, training: bool, running_mean: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate mean, variance, and the moved running statistics."""
    batch = x.shape[1] if training else 0
    running = 0 if running_mean is None else batch
    mean, var, new_mean, new_var = (empty_vector(x, c) for c in (batch, batch, running, running))
    return mean, var, new_mean, new_var


def _wanted(statistics: Iterable[Tensor]) -> tuple[Tensor | None, ...]:
    return tuple(None if values.shape[0] == 0 else values for values in statistics)


def _or_nothing(grads: Iterable[Tensor | None], like: Tensor) -> list[Tensor]:
    """Put empty tensors where nothing is needed: what an op returns is not optional."""
    return [like.new_empty((0,)) if grad is None else grad for grad in grads]


@torch.library.custom_op(
    "ocnet::inplace_abn_stats",
    mutates_args=(),
    schema="(Tensor x, str backend) -> Tensor",
    tags=_TAGS,
)
def inplace_abn_stats(x: Tensor, backend: str) -> Tensor:
    """Return ``(2 C + 1,)``: means, sums of squared deviations from them, and the count."""
    return steps.stats(x, backend)


@inplace_abn_stats.register_fake
def _(x: Tensor, backend: str) -> Tensor:
    return empty_vector(x, 2 * x.shape[1] + 1)


def _normalise(
    x: Tensor,
    out: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    slope: Tensor | None,
    packed: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    *pointwise: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Write ``out``, and return the statistics."""
    statistics = _empty_statistics(x, training, running_mean)
    steps.forward(
        x, out, residual, (weight, bias, slope), packed, (running_mean, running_var),
        (training, momentum, eps), Pointwise(*pointwise), _wanted(statistics),
    )  # fmt: skip
    return statistics


def _fake_statistics(
    x: Tensor, residual: Any, weight: Any, bias: Any, slope: Any, packed: Any, running_mean: Any,
    running_var: Any, training: bool, *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _empty_statistics(x, training, running_mean)


@torch.library.custom_op(
    "ocnet::inplace_abn_fwd",
    mutates_args=(),
    schema=f"(Tensor x, {_FORWARD}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
def inplace_abn_fwd(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Return the map, the batch's mean and biased variance, and the moved running statistics.

    The vectors have no elements out of training, and the last two none without running statistics.
    """
    out = empty_like_map(x)
    return (out, *_normalise(x, out, *arguments))


@inplace_abn_fwd.register_fake
def _(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return (empty_like_map(x), *_fake_statistics(x, *arguments))


@torch.library.custom_op(
    "ocnet::inplace_abn_fwd_",
    mutates_args=("x",),
    schema=f"(Tensor(a!) x, {_FORWARD}) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
def inplace_abn_fwd_(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Overwrite ``x`` with the result; return what ``inplace_abn_fwd`` returns besides.

    Not differentiable: called on a tensor that requires grad outside of a Function, its gradient
    would be missing.
    """
    # A layout that kernels do not read is overwritten by a copy of the result.
    out = x if is_matrix(x) else empty_like_map(x)
    statistics = _normalise(x, out, *arguments)
    if out is not x:
        x.copy_(out)
    return statistics


@inplace_abn_fwd_.register_fake
def _(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return _fake_statistics(x, *arguments)


def _empty_grads(out: Tensor, needed: list[bool]) -> tuple[Tensor, ...]:
    """Allocate the gradients of maps and vectors, in this order, as fakes."""
    maps = (empty_like_map(out) if need else out.new_empty((0,)) for need in needed[:2])
    return (*maps, *_empty_vectors(out, needed[2:]))


def _empty_vectors(out: Tensor, needed: list[bool]) -> tuple[Tensor, ...]:
    return tuple(
        empty_vector(out, out.shape[1]) if need else out.new_empty((0,)) for need in needed
    )


@torch.library.custom_op(
    "ocnet::inplace_abn_bwd",
    mutates_args=(),
    schema=f"({_MAPS}, Tensor var, bool training, float eps, {_POINTWISE}, bool[] needed)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
def inplace_abn_bwd(
    out: Tensor,
    residual: Tensor | None,
    grad_out: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slope: Tensor | None,
    var: Tensor,
    training: bool,
    eps: float,
    scale_eps: float,
    activation: str,
    param: float,
    signed: bool,
    backend: str,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, residual, weight, bias and slope; those not needed have no elements."""
    pointwise = Pointwise(scale_eps, activation, param, signed, backend)
    grads = steps.backward(
        out, residual, grad_out, (weight, bias, slope), var, training, eps, pointwise,
        tuple(needed),
    )  # fmt: skip
    grad_x, grad_residual, grad_weight, grad_bias, grad_slope = _or_nothing(grads, out)
    return grad_x, grad_residual, grad_weight, grad_bias, grad_slope


@inplace_abn_bwd.register_fake
def _(out: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return _empty_grads(out, args[-1])


@torch.library.custom_op(
    "ocnet::inplace_abn_bwd_reduce",
    mutates_args=(),
    schema=f"({_MAPS}, Tensor? total, {_POINTWISE}, bool[] needed)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
def inplace_abn_bwd_reduce(
    out: Tensor,
    residual: Tensor | None,
    grad_out: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slope: Tensor | None,
    total: Tensor | None,
    scale_eps: float,
    activation: str,
    param: float,
    signed: bool,
    backend: str,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the sums ``(2, C)`` of this rank, and the gradients of weight, bias and slope."""
    pointwise = Pointwise(scale_eps, activation, param, signed, backend)
    sums, grads = steps.reduce(
        out, residual, grad_out, (weight, bias, slope), total, pointwise, tuple(needed)
    )
    grad_weight, grad_bias, grad_slope = _or_nothing(grads, out)
    return sums, grad_weight, grad_bias, grad_slope


@inplace_abn_bwd_reduce.register_fake
def _(out: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return (empty_vector(out, 2 * out.shape[1]).view(2, -1), *_empty_vectors(out, args[-1]))


@torch.library.custom_op(
    "ocnet::inplace_abn_bwd_apply",
    mutates_args=(),
    schema=f"({_MAPS}, Tensor var, Tensor? sums, Tensor? total, float eps, {_POINTWISE},"
    " bool[] needed) -> (Tensor, Tensor)",
    tags=_TAGS,
)
def inplace_abn_bwd_apply(
    out: Tensor,
    residual: Tensor | None,
    grad_out: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slope: Tensor | None,
    var: Tensor,
    sums: Tensor | None,
    total: Tensor | None,
    eps: float,
    scale_eps: float,
    activation: str,
    param: float,
    signed: bool,
    backend: str,
    needed: list[bool],
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the residual, from the sums over all ranks."""
    pointwise = Pointwise(scale_eps, activation, param, signed, backend)
    grads = steps.apply(
        out, residual, grad_out, (weight, bias, slope), var, sums, total, eps, pointwise,
        tuple(needed),
    )  # fmt: skip
    grad_x, grad_residual = _or_nothing(grads, out)
    return grad_x, grad_residual


@inplace_abn_bwd_apply.register_fake
def _(out: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return _empty_grads(out, args[-1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    (
        _x, residual, weight, bias, slope, packed, _mean, running_var, ctx.training, _momentum,
        ctx.eps, *ctx.pointwise,
    ) = inputs  # fmt: skip
    if packed is not None:
        raise RuntimeError(
            "inplace_abn_fwd: packed must be left out where gradients are wanted, got statistics of "
            "other ranks; use ocnet.ops.inplace_abn with a group"
        )
    out, mean, var, new_mean, new_var = output
    ctx.mark_non_differentiable(mean, var, new_mean, new_var)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(out, residual, weight, bias, slope, var if ctx.training else running_var)


def _backward(ctx: Any, grad_out: Tensor | None, *_others: Tensor | None) -> tuple[Any, ...]:
    if grad_out is None:
        return (None,) * 16
    out, residual, weight, bias, slope, var = ctx.saved_tensors
    needed = list(ctx.needs_input_grad[:5])
    grads = torch.ops.ocnet.inplace_abn_bwd(
        out, residual, grad_out, weight, bias, slope, var, ctx.training, ctx.eps, *ctx.pointwise,
        needed,
    )  # fmt: skip
    return (*in_their_dtypes(grads, needed, (weight, bias, slope)), *[None] * 11)


def in_their_dtypes(
    grads: Sequence[Tensor | None], needed: Sequence[bool], vectors: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Return ``None`` for gradients that are not needed, and those of vectors in their dtypes."""
    result = [grad if need else None for grad, need in zip(grads, needed, strict=True)]
    first = len(result) - len(vectors)
    for i, vector in enumerate(vectors, first):
        grad = result[i]
        if vector is not None and grad is not None and grad.dtype != vector.dtype:
            result[i] = grad.to(vector.dtype)
    return result


def _no_second_order(ctx: Any, *_grads: Any) -> None:
    raise NotImplementedError(
        "inplace_abn: gradients must be of first order, got a backward through its backward"
    )


inplace_abn_fwd.register_autograd(_backward, setup_context=_setup_context)
for _op in (inplace_abn_bwd, inplace_abn_bwd_reduce, inplace_abn_bwd_apply):
    _op.register_autograd(_no_second_order)
