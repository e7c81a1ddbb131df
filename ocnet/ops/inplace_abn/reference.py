# SPDX-License-Identifier: MIT
"""The plain formula, and an eager back end: one torch op for each step of the formula."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ocnet.ops._backends import SUPPORTED, Support
from ocnet.ops.inplace_abn.problem import (
    ELU,
    IDENTITY,
    LEAKY_RELU,
    RELU,
    ApplyCall,
    BackwardCall,
    ForwardCall,
    Problem,
    ReduceCall,
    StatsCall,
    accumulator,
    elu_floor,
)


def effective_scale(weight: Tensor, scale_eps: float, signed: bool) -> Tensor:
    """Return what the normalised map is multiplied by; differentiable, and never 0.

    ``|weight| + scale_eps``, with the sign of the weight if ``signed``. The sign of 0 is +, and so is
    the derivative of the magnitude there.
    """
    sign = torch.where(weight < 0, -1.0, 1.0).to(weight.dtype)
    scale = sign * weight + scale_eps
    return sign * scale if signed else scale


def naive_inplace_abn(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "leaky_relu",
    activation_param: float | Tensor = 0.01,
    *,
    scale_mode: str = "abs_eps",
    residual: Tensor | None = None,
) -> Tensor:
    """Compute activated batch norm by torch's own ops, which keep their inputs for backward.

    All in the dtype of ``x``. Differentiable by plain autograd; the tests' oracle (in float64) and the
    benchmarks' baseline.

    Args:
        x: ``(N, C, ...)``.
        weight: ``(C,)``, as all vectors.
        bias: Likewise.
        running_mean: Moved in training.
        running_var: Moved in training.
        training: Whether statistics are those of the batch.
        momentum: Weight of the batch in the running statistics.
        eps: Added to the variance, and to the magnitude of the weight.
        activation: As in ``inplace_abn``.
        activation_param: Slope or scale.
        scale_mode: As in ``inplace_abn``.
        residual: Added before the activation.

    Returns:
        The map.
    """
    scale = None if weight is None else effective_scale(weight, eps, scale_mode == "signed")
    y = F.batch_norm(x, running_mean, running_var, scale, bias, training, momentum, eps)
    if residual is not None:
        y = y + residual
    if isinstance(activation_param, Tensor):
        return F.prelu(y, activation_param.to(y.dtype))
    if activation == "leaky_relu":
        return F.leaky_relu(y, activation_param)
    if activation == "elu":
        return F.elu(y, activation_param)
    return F.relu(y) if activation == "relu" else y


def supports(problem: Problem) -> Support:
    """Take every call."""
    return SUPPORTED


class _Channels:
    """How vectors of channels meet a dense map, and sums over what is not a channel."""

    def __init__(self, matrix: Tensor) -> None:
        self.shape = (1, -1) if matrix.dim() == 2 else (1, -1, 1)
        self.others = (0,) if matrix.dim() == 2 else (0, 2)
        self.wide = accumulator(matrix.dtype)

    def of(self, vector: Tensor) -> Tensor:
        return vector.view(self.shape)

    def sum(self, matrix: Tensor) -> Tensor:
        return matrix.sum(self.others)


def stats(call: StatsCall) -> None:
    """Write the packed statistics of the map."""
    channels, c = _Channels(call.x), call.x.shape[1]
    wide = call.x.to(channels.wide)
    count = Problem.of(call.x).per_channel
    mean = channels.sum(wide) / max(count, 1)
    call.packed[:c] = mean
    call.packed[c : 2 * c] = channels.sum((wide - channels.of(mean)) ** 2)
    call.packed[2 * c] = count


def merge(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Merge statistics ``(parts, 2 C + 1)`` in their order; return mean, biased variance, count."""
    c = packed.shape[1] // 2
    mean, squares, count = packed[0, :c], packed[0, c : 2 * c], packed[0, 2 * c]
    for part in packed[1:]:
        total = count + part[2 * c]
        share = part[2 * c] / total.clamp(min=1)
        delta = part[:c] - mean
        squares = squares + part[c : 2 * c] + delta**2 * (count * share)
        mean, count = mean + delta * share, total
    return mean, squares / count.clamp(min=1), count


def forward(call: ForwardCall) -> None:
    """Write the output, and in training the statistics."""
    channels = _Channels(call.x)
    mean, var = call.running_mean, call.running_var
    if call.training:
        mean, var = _batch_statistics(call, channels)
    assert mean is not None
    assert var is not None
    y = (call.x.to(channels.wide) - channels.of(mean)) * channels.of(
        torch.rsqrt(var + call.eps) * _scale(call, var)
    )
    if call.bias is not None:
        y = y + channels.of(call.bias)
    if call.residual is not None:
        y = y + call.residual
    call.out.copy_(_activate(call, y, channels))


def _batch_statistics(call: ForwardCall, channels: _Channels) -> tuple[Tensor, Tensor]:
    packed = call.packed
    if packed is None:
        packed = call.x.new_empty((1, 2 * call.x.shape[1] + 1), dtype=channels.wide)
        stats(StatsCall(call.x, packed[0]))
    mean, var, count = merge(packed)
    assert call.mean is not None
    assert call.var is not None
    call.mean.copy_(mean)
    call.var.copy_(var)
    unbiased = var * (count / (count - 1).clamp(min=1))
    for running, batch, new in (
        (call.running_mean, mean, call.new_mean),
        (call.running_var, unbiased, call.new_var),
    ):
        if running is not None and new is not None:
            new.copy_((1 - call.momentum) * running + call.momentum * batch)
    return mean, var


_Pointwise = ForwardCall | ReduceCall | ApplyCall


def _scale(call: _Pointwise, like: Tensor) -> Tensor:
    if call.weight is None:
        return torch.ones_like(like)
    return effective_scale(call.weight, call.scale_eps, call.signed)


def _slope(call: _Pointwise, channels: _Channels) -> Tensor | float:
    if call.slope is None:
        return call.param
    has_inverse = (call.slope > 0) & (call.slope < torch.inf)
    return channels.of(torch.where(has_inverse, call.slope, torch.nan))


def _activate(call: ForwardCall, y: Tensor, channels: _Channels) -> Tensor:
    if call.activation == LEAKY_RELU:
        slope = _slope(call, channels)
        # A slope that is NaN makes the whole channel NaN, as the inverse would be wrong in all of it.
        return torch.where(torch.signbit(y), y * slope, y + 0 * slope)
    if call.activation == ELU:
        return torch.where(torch.signbit(y), call.param * torch.expm1(y), y)
    return torch.relu(y) if call.activation == RELU else y


def _recovered(
    call: ReduceCall | ApplyCall, channels: _Channels
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``dy``, ``y - bias`` within its bounds, the activation's argument, and the scale."""
    z, dz = call.out.to(channels.wide), call.grad_out.to(channels.wide)
    negative = torch.signbit(z)
    if call.activation == LEAKY_RELU:
        slope = _slope(call, channels)
        # A slope that is NaN shows in the whole channel, whatever the sign of a NaN in the output.
        y = torch.where(negative, z / slope, z + 0 * slope)
        dy = torch.where(negative, dz * slope, dz + 0 * slope)
    elif call.activation == ELU:
        ratio = (z / call.param).clamp(min=-1 + elu_floor(call.out.dtype))
        y = torch.where(negative, torch.log1p(ratio), z)
        dy = torch.where(negative, dz * (z + call.param), dz)
    elif call.activation == RELU:
        # What was negative has no gradient, so its value is of no interest.
        y, dy = z, torch.where(z > 0, dz, 0 * z)
    else:
        assert call.activation == IDENTITY
        y, dy = z, dz
    centred = y if call.residual is None else y - call.residual
    centred = centred if call.bias is None else centred - channels.of(call.bias)
    scale = _scale(call, torch.empty(z.shape[1], dtype=z.dtype, device=z.device))
    if call.total is not None:
        bound = channels.of(scale.abs() * torch.sqrt((call.total - 1).clamp(min=0)))
        centred = torch.minimum(torch.maximum(centred, -bound), bound)
    return dy, centred, y, scale


def reduce(call: ReduceCall) -> None:
    """Write the sums, and the gradients of vectors."""
    channels = _Channels(call.out)
    dy, centred, y, scale = _recovered(call, channels)
    call.sums[0] = channels.sum(dy)
    call.sums[1] = channels.sum(centred * dy)
    if call.grad_bias is not None:
        call.grad_bias.copy_(call.sums[0])
    if call.grad_weight is not None:
        assert call.weight is not None
        flipped = torch.zeros_like(scale, dtype=torch.bool) if call.signed else call.weight < 0
        call.grad_weight.copy_(torch.where(flipped, -1.0, 1.0) * call.sums[1] / scale)
    if call.grad_slope is not None:
        counts = torch.signbit(call.out) | y.isnan()
        of_negative = torch.where(counts, y * call.grad_out, 0.0)
        call.grad_slope.copy_(channels.sum(of_negative))


def apply(call: ApplyCall) -> None:
    """Write the gradients of the maps."""
    channels = _Channels(call.out)
    dy, centred, _, scale = _recovered(call, channels)
    if call.grad_residual is not None:
        call.grad_residual.copy_(dy)
    if call.grad_x is None:
        return
    invstd = torch.rsqrt(call.var + call.eps)
    factor = scale * invstd
    dx = channels.of(factor) * dy
    if call.sums is not None:
        assert call.total is not None
        slope, offset = (
            -invstd * call.sums[1] / (scale * call.total),
            -factor * call.sums[0] / call.total,
        )
        dx = dx + (channels.of(slope) * centred + channels.of(offset))
    call.grad_x.copy_(dx)


def in_two_steps(
    call: BackwardCall, reduce: Callable[[ReduceCall], None], apply: Callable[[ApplyCall], None]
) -> None:
    """Make both steps of a backward pass on one rank out of the single ones."""
    matrix, pointwise = call.out, (call.scale_eps, call.activation, call.param, call.signed)
    maps = (matrix, call.residual, call.grad_out, call.weight, call.bias, call.slope)
    problem = Problem.of(matrix)
    count = call.var.new_full((1,), problem.per_channel) if call.training else None
    vectors = (call.grad_weight, call.grad_bias, call.grad_slope)
    wants_sums = call.training and call.grad_x is not None
    sums = call.var.new_empty((2, problem.C))
    if wants_sums or any(vector is not None for vector in vectors):
        reduce(ReduceCall(*maps, count, *pointwise, sums, *vectors))
    if call.grad_x is not None or call.grad_residual is not None:
        used, known = (sums, count) if wants_sums else (None, None)
        grads = (call.grad_x, call.grad_residual)
        apply(ApplyCall(*maps, call.var, used, known, call.eps, *pointwise, *grads))


def backward(call: BackwardCall) -> None:
    """Write the gradients that are not ``None``."""
    in_two_steps(call, reduce, apply)
