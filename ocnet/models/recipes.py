# SPDX-License-Identifier: MIT
"""The networks by name: which class, backbone, norm and widths each is made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from ocnet.models import networks
from ocnet.models.backbones import STRIDE_8, STRIDE_8_AFTERWARDS, STRIDE_16, Dilation
from ocnet.models.segmentor import Segmentor


@dataclass(frozen=True)
class Code:
    """Published code, and what its networks have in common.

    Attributes:
        norm: Its batch norm, a name that ``ocnet.modules.norm_layer`` knows.
        activation: Of its heads with that norm.
        plain_activation: Of its heads with norms that are not in-place.
        dilation: Strides and dilations of its ResNets.
        stem: Name of the child that holds the stem of its ResNets.
        own_init: Whether its backbones have initial weights other than torch's.
    """

    norm: str = "inplace_abn_sync"
    activation: str = "leaky_relu"
    plain_activation: str = "leaky_relu"
    dilation: Dilation = STRIDE_8
    stem: str = ""
    own_init: bool = False


OCNET = Code()
# ReLU in builds with torch's norms, leaky ReLU in those with in-place ones. Its HRNets start as torch's
# layers do: they are always pre-trained.
OPENSEG = Code(plain_activation="relu", dilation=STRIDE_8_AFTERWARDS, stem="resinit", own_init=True)
OPENSEG_HRNET = Code(plain_activation="relu")
HRNET = Code(norm="syncbn", activation="relu", plain_activation="relu", own_init=True)
CE2P = Code(dilation=STRIDE_16)


@dataclass(frozen=True)
class Recipe:
    """One network.

    Attributes:
        network: Its class.
        code: The code it is from.
        backbone: ``resnet``, ``hrnet`` or ``tiny``.
        size: Depth of the ResNet, or width of the HRNet.
        options: Options of the class that differ from its defaults.
        taps: Layers of the ResNet whose maps are its features.
    """

    network: type[Segmentor]
    code: Code
    backbone: Literal["resnet", "hrnet", "tiny"] = "resnet"
    size: int = 101
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    taps: tuple[int, ...] = (3, 4)


_OCNET_HEADS: dict[str, type[Segmentor]] = {
    "baseline": networks.BaselineNet,
    "base_oc": networks.BaseOCNet,
    "pyramid_oc": networks.PyramidOCNet,
    "asp_oc": networks.ASPOCNet,
    "local": networks.LocalNet,
}
_OPENSEG_HEADS: dict[str, type[Segmentor]] = {
    "base_oc": networks.OpensegBaseOCNet,
    "asp_oc": networks.OpensegASPOCNet,
    "isa": networks.OpensegISANet,
    "ocr": networks.OpensegOCRNet,
    "asp_ocr": networks.OpensegASPOCRNet,
    "fcn": networks.OpensegFCNNet,
}
# Heads of openseg that OCNet's code does not have, on backbones that openseg published no such network on.
_BORROWED = ("isa", "ocr", "asp_ocr")
_TINY_OPTIONS = {"asp_oc": {"dilations": (2, 4, 6)}, "asp_ocr": {"dilations": (2, 4, 6)}}


def _small(backbone: Literal["resnet", "tiny"], size: int, head: str, channels: int) -> Recipe:
    """Return a head on a small backbone, with ``channels`` for its width."""
    borrowed = head in _BORROWED
    options: dict[str, Any] = {"channels": channels}
    if backbone == "tiny":
        options |= _TINY_OPTIONS.get(head, {})
        if not borrowed and head != "baseline":
            options["aux"] = False
    heads = _OPENSEG_HEADS if borrowed else _OCNET_HEADS
    return Recipe(heads[head], OPENSEG if borrowed else OCNET, backbone, size, options)


def _recipes() -> dict[str, Recipe]:
    found = {}
    # A quarter of the published width for the 512 channels of ResNet-18.
    for depth, channels in ((18, 128), (50, 512)):
        for head in (*_OCNET_HEADS, *_BORROWED):
            found[f"resnet{depth}_{head}"] = _small("resnet", depth, head, channels)
    for head, network in _OCNET_HEADS.items():
        found[f"resnet101_{head}"] = Recipe(network, OCNET)
    for head, network in _OPENSEG_HEADS.items():
        found[f"openseg_{head}"] = Recipe(network, OPENSEG)
    half = {"channels": 256, "aux_channels": 256}
    found["hrnet_w48"] = Recipe(networks.HRNetFCNNet, OPENSEG_HRNET, "hrnet", 48)
    found["hrnet_w48_ocr"] = Recipe(networks.HRNetOCRNet, OPENSEG_HRNET, "hrnet", 48)
    found["hrnet_w48_ocr_b"] = Recipe(networks.HRNetOCRNet, OPENSEG_HRNET, "hrnet", 48, half)
    found["hrnet_w48_asp_ocr"] = Recipe(networks.HRNetASPOCRNet, OPENSEG_HRNET, "hrnet", 48)
    found["seg_hrnet_w48_ocr"] = Recipe(networks.SegHRNetOCRNet, HRNET, "hrnet", 48)
    for name, context in (("ce2p", "psp"), ("ce2p_asp_oc", "asp_oc")):
        found[name] = Recipe(
            networks.CE2PNet, CE2P, options={"context": context}, taps=(1, 2, 3, 4)
        )
    # As wide as the 64 channels of the encoder.
    for head in (*_OCNET_HEADS, *_BORROWED):
        found[f"tiny_{head}"] = _small("tiny", 0, head, 64)
    return found


RECIPES = _recipes()

# What the published codes call them.
ALIASES = {
    "resnet101_base_oc_dsn": "resnet101_base_oc",
    "resnet101_pyramid_oc_dsn": "resnet101_pyramid_oc",
    "resnet101_asp_oc_dsn": "resnet101_asp_oc",
    "base_ocnet": "openseg_base_oc",
    "asp_ocnet": "openseg_asp_oc",
    "isanet": "openseg_isa",
    "spatial_ocrnet": "openseg_ocr",
    "fast_base_ocnet": "openseg_ocr",
    "spatial_asp_ocrnet": "openseg_asp_ocr",
    "fast_asp_ocnet": "openseg_asp_ocr",
    "fcnet": "openseg_fcn",
    "seg_hrnet_ocr": "seg_hrnet_w48_ocr",
}
