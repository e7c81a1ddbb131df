# SPDX-License-Identifier: MIT
"""Networks by name."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ocnet.heads import AuxiliaryHead, BaseOCHead, FCNHead, LocalHead
from ocnet.models.backbones import ResNet, TinyEncoder, resnet18, resnet50, resnet101
from ocnet.models.segmentor import Segmentor
from ocnet.modules import Norm, name_layers, norm_layer
from ocnet.modules._checks import check_positive


@dataclass(frozen=True)
class _Widths:
    channels: int
    key: int
    value: int


# The published widths. Channels 512 and 256, for 2048 channels of features.
_FULL = _Widths(channels=512, key=256, value=256)
# A quarter of them, for the 512 channels of ResNet-18.
_LIGHT = _Widths(channels=128, key=64, value=64)
# Half the encoder's 64 channels for attention, the ratio of the published head.
_TINY = _Widths(channels=64, key=32, value=32)


def _tiny(in_channels: int, norm: Norm, activation: str) -> TinyEncoder:
    """Build the tiny encoder, which activates as the heads do whatever the backbones are told."""
    return TinyEncoder(in_channels, norm=norm)


@dataclass(frozen=True)
class _Recipe:
    backbone: Callable[[int, Norm, str], ResNet | TinyEncoder]
    head: Literal["baseline", "base_oc", "local"]
    widths: _Widths
    aux: bool


_RECIPES = {
    "resnet18_baseline": _Recipe(resnet18, "baseline", _LIGHT, aux=False),
    "resnet18_base_oc": _Recipe(resnet18, "base_oc", _LIGHT, aux=True),
    "resnet18_local": _Recipe(resnet18, "local", _LIGHT, aux=True),
    "resnet50_baseline": _Recipe(resnet50, "baseline", _FULL, aux=False),
    "resnet50_base_oc": _Recipe(resnet50, "base_oc", _FULL, aux=True),
    "resnet50_local": _Recipe(resnet50, "local", _FULL, aux=True),
    "resnet101_baseline": _Recipe(resnet101, "baseline", _FULL, aux=False),
    "resnet101_base_oc": _Recipe(resnet101, "base_oc", _FULL, aux=True),
    "resnet101_local": _Recipe(resnet101, "local", _FULL, aux=True),
    "tiny_base_oc": _Recipe(_tiny, "base_oc", _TINY, aux=False),
    "tiny_local": _Recipe(_tiny, "local", _TINY, aux=False),
}


def available() -> tuple[str, ...]:
    """Return the names that ``create`` knows."""
    return tuple(_RECIPES)


def create(
    name: str,
    num_classes: int,
    *,
    in_channels: int = 3,
    backend: str = "auto",
    sizes: Sequence[int] = (1,),
    aux: bool | None = None,
    channels: int | None = None,
    key_channels: int | None = None,
    value_channels: int | None = None,
    dropout: float = 0.05,
    norm: str = "batchnorm",
    backbone_activation: str | None = None,
) -> Segmentor:
    """Build a network by name, with fresh parameters.

    Args:
        name: ``<backbone>_<head>``, one of ``available()``. ``base_oc`` has object context,
            ``local`` is its parameter-matched control without attention, ``baseline`` has no
            context.
        num_classes: Classes ``K``.
        in_channels: Channels of the images.
        backend: Back end of ``ocnet.ops.oc_attention``; without effect on the other heads, so that
            a network and its control can be built alike.
        sizes: Pooling scale of each object-context block; ``base_oc`` only.
        aux: Add an auxiliary head. By default the ResNets with ``base_oc`` or ``local`` have one.
        channels: Width of the heads. By default 512 for ResNet-50 and -101, as published, 128 for
            ResNet-18 and 64 for the tiny encoder.
        key_channels: Channels of queries and keys; half of the default width by default.
        value_channels: Channels of the values; likewise.
        dropout: Fraction of channels that the heads drop in training.
        norm: ``batchnorm``; ``inplace_abn``, which keeps only its output for backward;
            ``inplace_abn_sync``, the same with the statistics of all ranks; or ``syncbn``, torch's,
            on GPUs. Scales of the in-place norms are ``|weight| + eps``, as published: weights of a
            network with plain batch norm compute the same only where none is negative.
        backbone_activation: ``relu`` or ``leaky_relu`` (slope 0.01) in the ResNets. By default
            ``leaky_relu`` for in-place norms, which cannot invert a ReLU: with ``relu``, as in OCNet's
            published backbone, they keep two maps, as plain batch norm does.

    Raises:
        ValueError: An unknown name, or options that the head does not have.

    Example:
        >>> model = create("tiny_base_oc", num_classes=5, in_channels=1)
    """
    recipe = _recipe(name)
    check_positive("create", "num_classes", num_classes)
    check_positive("create", "in_channels", in_channels)
    if recipe.head != "base_oc" and tuple(sizes) != (1,):
        raise ValueError(
            f"create: sizes must be left at (1,) for {name}, which has no object context, "
            f"got {tuple(sizes)}"
        )
    if recipe.head == "baseline" and (key_channels, value_channels) != (None, None):
        raise ValueError(
            f"create: key_channels and value_channels must be left out for {name}, which has no "
            f"context, got {key_channels} and {value_channels}"
        )
    width = recipe.widths.channels if channels is None else channels
    key = recipe.widths.key if key_channels is None else key_channels
    value = recipe.widths.value if value_channels is None else value_channels
    for argument, number in (("channels", width), ("key_channels", key), ("value_channels", value)):
        check_positive("create", argument, number)

    norms = norm_layer(norm)
    backbone = recipe.backbone(in_channels, norms, _activation(norm, backbone_activation))
    head: nn.Module
    if recipe.head == "base_oc":
        head = BaseOCHead(
            backbone.out_channels, num_classes, width, key, value, dropout, sizes, backend, norms
        )
    elif recipe.head == "local":
        head = LocalHead(backbone.out_channels, num_classes, width, key, value, dropout, norms)
    else:
        head = FCNHead(backbone.out_channels, num_classes, width, dropout, norms)
    aux_head = None
    if recipe.aux if aux is None else aux:
        aux_head = AuxiliaryHead(backbone.aux_channels, num_classes, width, dropout, norms)
    model = Segmentor(backbone, head, aux_head)
    name_layers(model)
    return model


def _activation(norm: str, asked: str | None) -> str:
    if asked is None:
        return "leaky_relu" if norm.startswith("inplace") else "relu"
    if asked not in ("relu", "leaky_relu"):
        raise ValueError(f"create: backbone_activation must be relu or leaky_relu, got {asked!r}")
    return asked


def _recipe(name: str) -> _Recipe:
    if name not in _RECIPES:
        close = difflib.get_close_matches(name, _RECIPES, n=1)
        hint = f"; the closest is {close[0]!r}" if close else ""
        raise ValueError(f"create: name must be one of {', '.join(_RECIPES)}, got {name!r}{hint}")
    return _RECIPES[name]
