# SPDX-License-Identifier: MIT
"""What a call of in-place ABN looks like to a back end: its sizes, its tensors, the point-wise part."""

from typing import NamedTuple

import torch
from torch import Tensor

from ocnet.ops._backends import Support, refuse_tensors

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Codes of the activations in the native schemas. A leaky ReLU with a slope of its own for each
# channel is ``prelu``.
IDENTITY, LEAKY_RELU, ELU, RELU = 0, 1, 2, 3
ACTIVATIONS = {
    "leaky_relu": LEAKY_RELU,
    "elu": ELU,
    "identity": IDENTITY,
    "prelu": LEAKY_RELU,
    "relu": RELU,
}
SCALE_MODES = ("abs_eps", "signed")


class Problem(NamedTuple):
    """Sizes and kinds of one call.

    Attributes:
        device: Of all tensors.
        dtype: Of the maps.
        N: Planes of each channel; 1 where the map is rows.
        C: Channels.
        L: Numbers in a plane, or rows.
        rows: Whether the channels of a pixel lie side by side (channels_last).
    """

    device: torch.device
    dtype: torch.dtype
    N: int
    C: int
    L: int
    rows: bool

    @staticmethod
    def of(matrix: Tensor) -> "Problem":
        """Describe a call on a dense matrix: planes ``(N, C, L)`` or rows ``(R, C)``."""
        if matrix.dim() == 2:
            return Problem(matrix.device, matrix.dtype, 1, matrix.shape[1], matrix.shape[0], True)
        n, c, length = matrix.shape
        return Problem(matrix.device, matrix.dtype, n, c, length, False)

    @property
    def per_channel(self) -> int:
        """Numbers of each channel here, on this rank."""
        return self.N * self.L


class StatsCall(NamedTuple):
    """Statistics of a map.

    Attributes:
        x: Dense planes ``(N, C, L)`` or rows ``(R, C)``, as everywhere below.
        packed: ``(2 C + 1,)``, to write: the mean of each channel, its sum of squared deviations from
            that mean, and the count. Zeros where there is nothing to count.
    """

    x: Tensor
    packed: Tensor


class ForwardCall(NamedTuple):
    """Normalise and activate; in the order of the native schema.

    Vectors of channels are of the accumulation dtype: float32, or float64 for float64 maps.

    Attributes:
        x: The map.
        residual: A map that is added before the activation, or ``None``.
        weight: ``(C,)`` or ``None``, which stands for an effective scale of 1.
        bias: ``(C,)`` or ``None``.
        slope: ``(C,)`` slopes of a leaky ReLU, or ``None`` where ``param`` is the slope.
        packed: ``(parts, 2 C + 1)`` statistics to merge, in their order, or ``None``: of ``x``.
        running_mean: ``(C,)`` or ``None``. Normalises where ``training`` is false.
        running_var: Likewise.
        training: Whether statistics are those of the batch.
        momentum: Weight of the batch in the running statistics.
        eps: Added to the variance.
        scale_eps: Added to the magnitude of the weight.
        activation: ``IDENTITY``, ``LEAKY_RELU``, ``ELU`` or ``RELU``.
        param: Slope of the leaky ReLU, or scale of the ELU.
        signed: Whether the effective scale keeps the sign of the weight.
        out: To write, of the shape and strides of ``x``; may be ``x`` itself.
        mean: ``(C,)``, to write in training.
        var: ``(C,)``, to write in training: the biased variance.
        new_mean: ``(C,)`` running mean, to write; may be ``running_mean`` itself. ``None``: not wanted.
        new_var: Likewise, from the unbiased variance.
    """

    x: Tensor
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    slope: Tensor | None
    packed: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    training: bool
    momentum: float
    eps: float
    scale_eps: float
    activation: int
    param: float
    signed: bool
    out: Tensor
    mean: Tensor | None
    var: Tensor | None
    new_mean: Tensor | None
    new_var: Tensor | None


class ReduceCall(NamedTuple):
    """Sums over each channel that the backward pass needs; in the order of the native schema.

    Attributes:
        out: What the forward pass wrote.
        residual: What it added, or ``None``.
        grad_out: Dense, of the layout of ``out``.
        weight: As in the forward pass, like ``bias`` and ``slope``.
        bias: See ``weight``.
        slope: See ``weight``.
        total: ``(1,)``: numbers of each channel over all ranks, or ``None`` where statistics were
            frozen. Normalised numbers are at most ``sqrt(total - 1)`` away from 0.
        scale_eps: As in the forward pass, like what follows.
        activation: See ``scale_eps``.
        param: See ``scale_eps``.
        signed: See ``scale_eps``.
        sums: ``(2, C)``, to write: the sums of ``dy`` and of ``(y - bias) * dy``, where ``y`` is the
            normalised and scaled number, without the residual.
        grad_weight: ``(C,)``, to write, or ``None``.
        grad_bias: Likewise.
        grad_slope: Likewise.
    """

    out: Tensor
    residual: Tensor | None
    grad_out: Tensor
    weight: Tensor | None
    bias: Tensor | None
    slope: Tensor | None
    total: Tensor | None
    scale_eps: float
    activation: int
    param: float
    signed: bool
    sums: Tensor
    grad_weight: Tensor | None
    grad_bias: Tensor | None
    grad_slope: Tensor | None


class ApplyCall(NamedTuple):
    """Gradients of the maps from sums; in the order of the native schema.

    Attributes:
        var: ``(C,)``: the variance that normalised.
        sums: ``(2, C)`` over all ranks, or ``None`` where statistics were frozen.
        grad_x: To write, dense, or ``None``.
        grad_residual: Likewise.
    """

    out: Tensor
    residual: Tensor | None
    grad_out: Tensor
    weight: Tensor | None
    bias: Tensor | None
    slope: Tensor | None
    var: Tensor
    sums: Tensor | None
    total: Tensor | None
    eps: float
    scale_eps: float
    activation: int
    param: float
    signed: bool
    grad_x: Tensor | None
    grad_residual: Tensor | None


class BackwardCall(NamedTuple):
    """Both steps on one rank; in the order of the native schema. ``None``: not wanted."""

    out: Tensor
    residual: Tensor | None
    grad_out: Tensor
    weight: Tensor | None
    bias: Tensor | None
    slope: Tensor | None
    var: Tensor
    training: bool
    eps: float
    scale_eps: float
    activation: int
    param: float
    signed: bool
    grad_x: Tensor | None
    grad_residual: Tensor | None
    grad_weight: Tensor | None
    grad_bias: Tensor | None
    grad_slope: Tensor | None


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of statistics and sums of maps of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def elu_floor(dtype: torch.dtype) -> float:
    """Return how near to -1 ``z / alpha`` of a saturated ELU is taken to be.

    ``-alpha`` itself has no inverse. Half a unit of the last place of the stored dtype (a whole one of
    the accumulation dtype) is where numbers began to be rounded to it.
    """
    eps = torch.finfo(dtype).eps
    wide = torch.finfo(accumulator(dtype)).eps
    return max(eps / 4, wide / 2)


def refuse_common(problem: Problem, device_type: str) -> Support | None:
    """Return the refusal that any compiled back end gives, or ``None``."""
    return refuse_tensors(problem.device, problem.dtype, device_type, DTYPES)
