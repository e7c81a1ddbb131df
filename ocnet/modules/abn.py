# SPDX-License-Identifier: MIT
"""Batch norm with its activation in one layer."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocnet.ops._checks import shape_of

ACTIVATIONS = ("leaky_relu", "elu", "relu", "identity", "none")


class ABN(nn.Module):
    """Normalise each channel over the batch and the pixels, then activate.

    ``activation(weight * (x - mean) / sqrt(var + eps) + bias)``, with the statistics of the batch
    (biased variance) in training and the running ones in evaluation. In training each running
    statistic moves as ``running = (1 - momentum) * running + momentum * batch``, the variance by
    its unbiased estimate.

    ``eps``, ``momentum``, ``activation`` and ``activation_param`` are read in every call, so
    assigning to them takes effect.

    Args:
        num_features: Channels ``C``.
        eps: Added to the variance.
        momentum: Weight of the batch in the running statistics, a fraction.
        affine: Learn ``weight`` and ``bias``. Without, both are ``None``.
        activation: ``leaky_relu``, ``elu``, ``relu`` or ``identity``; ``none`` is the old name of
            the last.
        activation_param: Slope of ``leaky_relu`` below zero, or the scale of ``elu``; at least 0.

    Note:
        State keys are ``weight``, ``bias``, ``running_mean`` and ``running_var``. There is no
        ``num_batches_tracked``; one in a state dict that is loaded is dropped. ``weight`` enters
        with its sign, as in ``torch.nn.BatchNorm2d``; the in-place layer of the paper uses
        ``|weight| + eps``. The activation overwrites the normalised map, which batch norm does not
        keep for its backward.

    Source: Rota Bulò, Porzi, Kontschieder, CVPR 2018 (arXiv 1712.02616), for the layer and its
    constructor.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        activation: str = "leaky_relu",
        activation_param: float = 0.01,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.activation = activation
        self.activation_param = activation_param
        _check_activation(activation, activation_param)
        if affine:
            self.weight = nn.Parameter(torch.empty(num_features))
            self.bias = nn.Parameter(torch.empty(num_features))
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
        self.register_buffer("running_mean", torch.empty(num_features))
        self.register_buffer("running_var", torch.empty(num_features))
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Set the running mean to 0 and the running variance to 1."""
        self.running_mean.zero_()
        self.running_var.fill_(1)

    def reset_parameters(self) -> None:
        """Set ``weight`` to 1, ``bias`` to 0, and the running statistics to their start."""
        self.reset_running_stats()
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised and activated map, of the shape and dtype of ``x``.

        Args:
            x: ``(N, C, ...)``, floating.

        Raises:
            ValueError: Other channels, one value per channel in training, or an unknown activation.
        """
        if x.dim() < 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"ABN: x must have shape (N, {self.num_features}, ...), got {shape_of(x)}"
            )
        if self.training and x.numel() <= x.shape[1]:
            raise ValueError(
                "ABN: x must have more than one value per channel in training, because the "
                f"variance of one value is zero, got {shape_of(x)}"
            )
        _check_activation(self.activation, self.activation_param)
        y = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )
        if self.activation == "leaky_relu":
            return F.leaky_relu(y, self.activation_param, inplace=True)
        if self.activation == "elu":
            return F.elu(y, self.activation_param, inplace=True)
        if self.activation == "relu":
            return F.relu(y, inplace=True)
        return y

    def extra_repr(self) -> str:
        """Return the constructor's arguments, the activation with its parameter in brackets."""
        activation = self.activation
        if activation in ("leaky_relu", "elu"):
            activation = f"{activation}[{self.activation_param}]"
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"activation={activation}"
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _check_activation(activation: str, activation_param: float) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"ABN: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}"
        )
    # Below zero the sign of the output no longer tells the branch, which the in-place backward
    # reads.
    if activation_param < 0:
        raise ValueError(f"ABN: activation_param must be at least 0, got {activation_param}")
