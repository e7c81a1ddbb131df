# SPDX-License-Identifier: MIT
"""Networks by name."""

import difflib
import inspect
from typing import Any

from ocnet.models.backbones import Body, HRNetBody, ResNetBody, TinyBody
from ocnet.models.recipes import ALIASES, RECIPES, Code, Recipe
from ocnet.models.segmentor import Segmentor
from ocnet.models.style import Style
from ocnet.modules import Norm, name_layers, norm_layer
from ocnet.modules._checks import check_positive

_ACTIVATIONS = ("relu", "leaky_relu")
_WIDTHS = ("channels", "key_channels", "value_channels", "aux_channels")


def names() -> tuple[str, ...]:
    """Return the names that :func:`create` knows, but for those that other code has for them."""
    return tuple(RECIPES)


def create(
    name: str,
    num_classes: int = 19,
    *,
    norm: str | None = None,
    backend: str = "auto",
    in_channels: int = 3,
    activation: str | None = None,
    backbone_activation: str = "relu",
    checkpoint_backbone: bool = False,
    **options: Any,
) -> Segmentor:
    """Build a network by name, with fresh parameters.

    Without options it is the published network, to its numbers, its initial weights and the keys of its state
    dict. Each network is documented in ``ocnet.models.networks``, with the options it has.

    Args:
        name: One of :func:`names`, or what the published code calls it (``isanet``). ``resnet101_*`` are
            those of OCNet's code, ``openseg_*`` and ``hrnet_*`` openseg's, ``seg_hrnet_*`` the HRNet
            repository's, ``ce2p*`` CE2P's; others put the same heads on smaller backbones.
        num_classes: Classes ``K``.
        norm: ``inplace_abn_sync``, which keeps only its output for backward and has the statistics of all
            ranks; ``inplace_abn``, the same of this process; ``batchnorm``; or ``syncbn``, torch's, on
            GPUs. Scales of the in-place norms are ``|weight| + eps``. By default that of the published
            network: ``inplace_abn_sync``, but ``syncbn`` for ``seg_hrnet_*``.
        backend: Back end of the ops of attention; norms choose theirs by themselves.
        in_channels: Channels of the images.
        activation: Of the heads, ``leaky_relu`` (slope 0.01) or ``relu``. By default as published: ``relu``
            in ``seg_hrnet_*`` and with openseg's norms that are not in-place, ``leaky_relu`` elsewhere.
        backbone_activation: ``relu``, as published, or ``leaky_relu``, with which in-place norms keep one
            map where they keep two otherwise, as a ReLU has no inverse.
        checkpoint_backbone: Compute each block of the backbone again in the backward pass, and keep only
            what is between them: memory for time. Not for the tiny networks.
        **options: Options of the network: ``channels``, ``dropout``, ``sizes``, ``factors``, ``aux``, ...

    Raises:
        ValueError: An unknown name, which is answered with the nearest ones, or an option that the network
            does not have.

    Example:
        >>> model = create("tiny_base_oc", num_classes=5, in_channels=1)
    """
    return build(
        find(name), name, num_classes, norm=norm, backend=backend, in_channels=in_channels,
        activation=activation, backbone_activation=backbone_activation,
        checkpoint_backbone=checkpoint_backbone, **options,
    )  # fmt: skip


def build(
    recipe: Recipe,
    name: str,
    num_classes: int,
    *,
    norm: str | None = None,
    backend: str = "auto",
    in_channels: int = 3,
    activation: str | None = None,
    backbone_activation: str = "relu",
    checkpoint_backbone: bool = False,
    **options: Any,
) -> Segmentor:
    """Build the network of a recipe; arguments and errors are those of :func:`create`."""
    check_positive("create", "num_classes", num_classes)
    check_positive("create", "in_channels", in_channels)
    _check_options(name, recipe, options)
    norm = recipe.code.norm if norm is None else norm
    norms = norm_layer(norm)
    for argument, value in (
        ("activation", activation),
        ("backbone_activation", backbone_activation),
    ):
        if value is not None and value not in _ACTIVATIONS:
            raise ValueError(f"create: {argument} must be relu or leaky_relu, got {value!r}")
    if checkpoint_backbone and recipe.backbone == "tiny":
        raise ValueError(
            f"create: checkpoint_backbone must be left at False for {name}, whose four layers have no "
            "blocks to compute again, got True"
        )
    if activation is None:
        activation = _published_activation(recipe.code, norm)
    body = _body(recipe, norms, in_channels, backbone_activation, checkpoint_backbone)
    network: Any = recipe.network
    model: Segmentor = network(
        body, num_classes, Style(norms, activation, backend), **{**recipe.options, **options}
    )
    name_layers(model)
    return model


def find(name: str) -> Recipe:
    """Return the recipe of a name that :func:`create` knows.

    Raises:
        ValueError: An unknown name.
    """
    name = ALIASES.get(name, name)
    if name not in RECIPES:
        close = difflib.get_close_matches(name, [*RECIPES, *ALIASES], n=3, cutoff=0.5)
        nearest = f"the nearest are {', '.join(close)}" if close else "none is near it"
        raise ValueError(
            f"create: name must be one of ocnet.models.names(), got {name!r}; {nearest}"
        )
    return RECIPES[name]


def _check_options(name: str, recipe: Recipe, options: dict[str, Any]) -> None:
    known = [
        parameter.name
        for parameter in inspect.signature(recipe.network).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    for option, value in options.items():
        if option not in known:
            raise ValueError(
                f"create: {option} must be left out for {name}, whose options are "
                f"{', '.join(known)}, got {value!r}"
            )
        if option in _WIDTHS and value is not None:
            check_positive("create", option, value)


def _published_activation(code: Code, norm: str) -> str:
    return code.activation if norm.startswith("inplace") else code.plain_activation


def _body(recipe: Recipe, norm: Norm, in_channels: int, activation: str, recompute: bool) -> Body:
    code = recipe.code
    if recipe.backbone == "tiny":
        # It activates as the heads do, whatever other backbones are told.
        return TinyBody(norm, in_channels)
    if recipe.backbone == "hrnet":
        return HRNetBody(
            recipe.size, norm, in_channels, activation, small_init=code.own_init,
            recompute=recompute,
        )  # fmt: skip
    return ResNetBody(
        recipe.size, norm, in_channels, activation, code.dilation, code.stem, recipe.taps,
        he_init=code.own_init, recompute=recompute,
    )  # fmt: skip
