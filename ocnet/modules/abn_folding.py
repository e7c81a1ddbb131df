# SPDX-License-Identifier: MIT
"""Networks for deployment: norms folded into convolutions, activations of torch, nothing of our own."""

import copy
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ocnet.modules.abn import ABN
from ocnet.modules.abn_converting import activation_of, scale_of, to_batchnorm

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Deployed(nn.Module):
    """What is left of a norm: an addition where the norm had one, and the activation.

    Args:
        norm: A batch norm, where it could not be folded into a convolution.
        activation: A module of torch.
    """

    def __init__(self, norm: nn.Module | None, activation: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return ``activation(norm(x) + residual)``."""
        if self.norm is not None:
            x = self.norm(x)
        activated: Tensor = self.activation(x if residual is None else x + residual)
        return activated


def to_deploy(model: nn.Module) -> nn.Module:
    """Return a copy of a network in evaluation whose norms are folded into the convolutions before them.

    ``conv`` and norm become one convolution with bias, by the running statistics; then the activation,
    as a module of torch. So ``torch.export`` and ONNX see torch's own ops. A norm follows a convolution
    where it comes right after it in a ``Sequential``, alone or in one of its own, and where a module says so in
    ``conv_norm_pairs``, a tuple of pairs of names. Other norms become ``BatchNorm2d`` and activation.

    Args:
        model: The network; not changed.

    Raises:
        ValueError: A norm without running statistics.
    """
    model = copy.deepcopy(model).eval()
    if isinstance(model, ABN):
        return _deployed(model, None)
    pairs = {id(norm): conv for conv, norm in _pairs(model)}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ABN):
                setattr(parent, name, _deployed(child, pairs.get(id(child))))
    return model.requires_grad_(False)


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            for conv, norm in itertools.pairwise(module):
                yield conv, norm[0] if isinstance(norm, nn.Sequential) else norm
        for conv, norm in getattr(module, "conv_norm_pairs", ()):
            yield getattr(module, conv), getattr(module, norm)


def _deployed(layer: ABN, conv: nn.Module | None) -> Deployed:
    if layer.running_mean is None or layer.running_var is None:
        raise ValueError(
            "to_deploy: model must have running statistics in every norm, got one with "
            "track_running_stats=False"
        )
    if not isinstance(conv, _CONVOLUTIONS):
        norm = to_batchnorm(layer)[0]
        return Deployed(norm.eval(), activation_of(layer))
    # In double: folded weights are then as near to the two steps as one rounding allows.
    scale = torch.rsqrt(layer.running_var.double() + layer.eps)
    if layer.weight is not None:
        scale = scale * scale_of(layer).double()
    shift = -layer.running_mean.double() * scale
    if layer.bias is not None:
        shift = shift + layer.bias.double()
    with torch.no_grad():
        if conv.bias is not None:
            shift = shift + conv.bias.double() * scale
        shape = (-1, *[1] * (conv.weight.dim() - 1))
        conv.weight.copy_(conv.weight.double() * scale.view(shape))
        conv.bias = nn.Parameter(shift.to(conv.weight.dtype))
    return Deployed(None, activation_of(layer))
