# SPDX-License-Identifier: MIT
"""Between plain batch norm and in-place activated batch norm, without a change of the function."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ocnet.modules.abn import ABN
from ocnet.modules.inplace_abn import InPlaceABN
from ocnet.ops.inplace_abn.reference import effective_scale

_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def from_batchnorm(
    norm: nn.Module,
    *,
    activation: str = "identity",
    activation_param: float = 0.01,
    scale_mode: str = "signed",
    layer: type[InPlaceABN] = InPlaceABN,
    **options: Any,
) -> InPlaceABN:
    """Return an in-place layer that computes what a batch norm computes, and activates.

    Args:
        norm: ``BatchNorm1d`` to ``3d``, ``SyncBatchNorm`` or ``ABN``; not changed.
        activation: Of the new layer.
        activation_param: Likewise.
        scale_mode: ``signed`` takes any weight (those nearer to 0 than ``eps`` become ``eps``);
            ``abs_eps`` those of at least ``eps``, see :func:`convert_conv_bn` for the others.
        layer: ``InPlaceABN`` or ``InPlaceABNSync``.
        **options: Further options of the layer.

    Raises:
        TypeError: ``norm`` is something else.
        ValueError: ``abs_eps``, and a weight below ``eps``.
    """
    if not isinstance(norm, (*_BATCH_NORMS, ABN)):
        raise TypeError(f"from_batchnorm: norm must be a batch norm, got {type(norm).__name__}")
    made = layer(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats,
        activation, activation_param, scale_mode=scale_mode, **options,
    )  # fmt: skip
    state = norm.state_dict()
    _move_like(made, norm)
    if norm.affine:
        state["weight"] = _weight_of_scale(state["weight"], made)
    made.load_state_dict(state, strict=False)
    made.train(norm.training)
    for own, theirs in zip(made.parameters(), norm.parameters(), strict=False):
        own.requires_grad_(theirs.requires_grad)
    return made


def _weight_of_scale(scale: Tensor, layer: InPlaceABN) -> Tensor:
    """Return the weight whose effective scale is given."""
    least = layer.eps if layer.scale_eps is None else layer.scale_eps
    if layer.scale_mode == "signed":
        # A weight of the sign of the scale, however small: the sign of 0 is +.
        tiny = torch.finfo(scale.dtype).tiny
        magnitude = (scale.abs() - least).clamp(min=tiny)
        return torch.where(scale < 0, -magnitude, magnitude)
    wrong = (scale < least).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"from_batchnorm: norm must have weights of at least {least} for scale_mode='abs_eps', "
            f"got less in channels {wrong[:8]}; use convert_conv_bn, or scale_mode='signed'"
        )
    return scale - least


def to_batchnorm(layer: ABN, dim: int = 4) -> nn.Sequential:
    """Return a batch norm and an activation of torch that compute what a layer computes.

    Args:
        layer: ``ABN`` or an in-place one; not changed.
        dim: Dimensions of the maps, 2 to 5.

    Raises:
        ValueError: Another number of dimensions.
    """
    if dim not in _NORMS:
        raise ValueError(f"to_batchnorm: dim must be 2 to 5, got {dim}")
    norm = _NORMS[dim](
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
    )
    state = {name: value.clone() for name, value in layer.state_dict().items() if name != "slope"}
    if layer.weight is not None:
        state["weight"] = scale_of(layer).detach().clone()
    _move_like(norm, layer)
    norm.load_state_dict(state, strict=False)
    # A frozen layer is one out of training, whatever its network does; torch's norm has no such state.
    norm.train(layer.training and not layer.frozen)
    return nn.Sequential(norm, activation_of(layer))


def _move_like(module: nn.Module, other: nn.Module) -> None:
    """Bring a module to the device and the floating dtype of another."""
    for values in (*other.parameters(), *other.buffers()):
        if values.is_floating_point():
            module.to(values.device, values.dtype)
            return


def scale_of(layer: ABN) -> Tensor:
    """Return what a layer multiplies the normalised map by."""
    weight = layer.weight
    assert weight is not None
    if not isinstance(layer, InPlaceABN):
        return weight
    least = layer.eps if layer.scale_eps is None else layer.scale_eps
    return effective_scale(weight, least, layer.scale_mode == "signed")


def activation_of(layer: ABN) -> nn.Module:
    """Return the activation of a layer as a module of torch."""
    activation, param = layer.activation, layer.activation_param
    if layer.relu_after:
        return nn.ReLU()
    if isinstance(layer, InPlaceABN) and layer.slope is not None and activation == "prelu":
        prelu = nn.PReLU(layer.num_features).to(layer.slope)
        prelu.weight.data.copy_(layer.used_slopes())
        return prelu
    if activation == "leaky_relu":
        return nn.LeakyReLU(param)
    if activation == "elu":
        return nn.ELU(param)
    return nn.ReLU() if activation == "relu" else nn.Identity()


def convert_conv_bn(
    conv: Convolution,
    norm: nn.Module,
    *,
    activation: str = "identity",
    activation_param: float = 0.01,
    layer: type[InPlaceABN] = InPlaceABN,
    **options: Any,
) -> tuple[Convolution, InPlaceABN]:
    """Return a convolution and an in-place layer of ``abs_eps`` that compute what conv and norm compute.

    Where a weight of the norm is negative, the filter, its bias and the running mean change their sign,
    and the weight is positive then: the same numbers to the last bit but one. The convolution may
    feed nothing but the norm.

    Args:
        conv: ``Conv1d`` to ``3d``; not changed.
        norm: Batch norm over its output; not changed.
        activation: Of the new layer.
        activation_param: Likewise.
        layer: ``InPlaceABN`` or ``InPlaceABNSync``.
        **options: Further options of the layer.

    Raises:
        TypeError: Not a convolution or batch norm.
        ValueError: A weight nearer to 0 than ``eps``; those need ``scale_mode="signed"``.
    """
    if not isinstance(conv, _CONVOLUTIONS):
        raise TypeError(f"convert_conv_bn: conv must be a convolution, got {type(conv).__name__}")
    conv, norm = copy.deepcopy(conv), copy.deepcopy(norm)
    if isinstance(norm, (*_BATCH_NORMS, ABN)) and norm.weight is not None:
        flipped = norm.weight < 0
        small = (norm.weight.abs() < norm.eps).nonzero().flatten().tolist()
        if small:
            raise ValueError(
                f"convert_conv_bn: norm must have weights of magnitude {norm.eps} or more, got less "
                f"in channels {small[:8]}; use from_batchnorm with scale_mode='signed'"
            )
        with torch.no_grad():
            negated = (norm.weight, norm.running_mean, conv.weight, conv.bias)
            for values in negated:
                if values is not None:
                    values[flipped] = -values[flipped]
    made = from_batchnorm(
        norm, activation=activation, activation_param=activation_param, scale_mode="abs_eps",
        layer=layer, **options,
    )  # fmt: skip
    return conv, made


def convert_batchnorm(
    model: nn.Module, *, layer: type[InPlaceABN] = InPlaceABN, **options: Any
) -> nn.Module:
    """Return a copy of a network with in-place layers for its batch norms, computing the same.

    In a ``Sequential`` a ``LeakyReLU`` or ``ELU`` right after a norm becomes the activation of the layer; an
    ``Identity`` takes its place. Scales keep their sign (``scale_mode="signed"``).

    Args:
        model: The network; not changed.
        layer: ``InPlaceABN`` or ``InPlaceABNSync``.
        **options: Further options of the layers.
    """
    model = copy.deepcopy(model)
    if isinstance(model, _BATCH_NORMS):
        return from_batchnorm(model, layer=layer, **options)
    _convert_children(model, layer, options)
    return model


def _convert_children(parent: nn.Module, layer: type[InPlaceABN], options: dict[str, Any]) -> None:
    children = list(parent.named_children())
    for index, (name, child) in enumerate(children):
        if not isinstance(child, _BATCH_NORMS):
            _convert_children(child, layer, options)
            continue
        told: dict[str, Any] = {}
        if isinstance(parent, nn.Sequential) and index + 1 < len(children):
            follower, after = children[index + 1]
            told = _told_by(after)
            if told:
                setattr(parent, follower, nn.Identity())
        setattr(parent, name, from_batchnorm(child, layer=layer, **told, **options))


def _told_by(activation: nn.Module) -> dict[str, Any]:
    """Return how a layer is told to activate as a module does; nothing if it cannot."""
    if isinstance(activation, nn.LeakyReLU) and activation.negative_slope > 0:
        return {"activation": "leaky_relu", "activation_param": activation.negative_slope}
    if isinstance(activation, nn.ELU) and activation.alpha > 0:
        return {"activation": "elu", "activation_param": activation.alpha}
    return {}


def freeze_norms(model: nn.Module) -> None:
    """Freeze every ``ABN`` of a network, for fine-tuning: see :meth:`ABN.freeze`."""
    for module in model.modules():
        if isinstance(module, ABN):
            module.freeze()
