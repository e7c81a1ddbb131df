# SPDX-License-Identifier: MIT
"""Dilated ResNets with a deep stem."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ocnet.models.backbones.blocks import (
    BasicBlock,
    Block,
    Bottleneck,
    conv3x3,
    residual_layer,
)
from ocnet.models.backbones.body import reinitialise, run_blocks
from ocnet.modules import BATCHNORM, Norm, activated

_STEM_PAIRS = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
_LAYERS = ("layer1", "layer2", "layer3", "layer4")
_DEPTHS: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


@dataclass(frozen=True)
class Dilation:
    """Strides and dilations of ``layer1`` to ``layer4``.

    Attributes:
        strides: Of the first block of each layer.
        dilations: Of its 3x3 convolutions.
        first: Of the strided convolution of its first block.
        ceil_pool: Whether the stem's pooling rounds sizes up: 1024 pixels give 129 at stride 8, not 128.
    """

    strides: tuple[int, int, int, int]
    dilations: tuple[int, int, int, int]
    first: tuple[int, int, int, int]
    ceil_pool: bool = True


# OCNet's code: the last two layers trade their strides for dilation, in every block.
STRIDE_8 = Dilation((1, 2, 1, 1), (1, 1, 2, 4), (1, 1, 2, 4))
# openseg's code does so afterwards, and gives the convolutions that had the strides half of it.
STRIDE_8_AFTERWARDS = Dilation((1, 2, 1, 1), (1, 1, 2, 4), (1, 1, 1, 2))
# CE2P's code: the last layer only.
STRIDE_16 = Dilation((1, 2, 2, 1), (1, 1, 1, 2), (1, 1, 1, 2), ceil_pool=False)


@dataclass(frozen=True)
class ResNetBody:
    """A ResNet with three 3x3 convolutions for a stem; see ``Body``.

    Attributes:
        depth: 18, 50 or 101.
        norm: Batch norm, called as ``norm(channels, activation=...)``.
        in_channels: Channels of the images.
        activation: ``relu``, as published, or ``leaky_relu`` (slope 0.01), with which in-place norms save
            memory: a ReLU has no inverse.
        dilation: Strides and dilations.
        stem: Name of the child that holds the stem; empty: it has none, and ``conv1`` to ``bn3`` are
            children of the module itself.
        taps: Layers whose maps are the features, 1 to 4.
        he_init: Draw weights of convolutions with deviation ``sqrt(2 / (k^2 * out_channels))``, as openseg
            does; otherwise they are torch's.
        recompute: Compute each block again in the backward pass, see ``run_blocks``.

    Source: He et al., CVPR 2016; the dilated deep-stem form of Yuan and Wang, OCNet (arXiv
    1809.00916), with the key names of its code.
    """

    depth: int = 101
    norm: Norm = BATCHNORM
    in_channels: int = 3
    activation: str = "relu"
    dilation: Dilation = STRIDE_8
    stem: str = ""
    taps: tuple[int, ...] = (3, 4)
    he_init: bool = False
    recompute: bool = False

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the maps of ``taps``."""
        expansion = _DEPTHS[self.depth][0].expansion
        return tuple(64 * 2 ** (tap - 1) * expansion for tap in self.taps)

    def mount(self, net: Any) -> None:
        """Add the layers to a module, as its children."""
        stem = self._stem()
        if self.stem:
            setattr(net, self.stem, stem)
        else:
            for name, layer in stem.named_children():
                setattr(net, name, layer)
            net.conv_norm_pairs = _STEM_PAIRS
        block, counts = _DEPTHS[self.depth]
        width = 128
        for i, name in enumerate(_LAYERS):
            layer = residual_layer(
                block, width, 64 * 2**i, counts[i], self.norm, self.activation,
                self.dilation.strides[i], self.dilation.dilations[i], self.dilation.first[i],
            )  # fmt: skip
            setattr(net, name, layer)
            width = 64 * 2**i * block.expansion
        if self.he_init:
            reinitialise([stem, *(getattr(net, name) for name in _LAYERS)], _he_deviation)

    def features(self, net: Any, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of ``taps`` of images ``(N, in_channels, H, W)``."""
        if self.stem:
            x = getattr(net, self.stem)(images)
        else:
            x = net.bn1(net.conv1(images))
            x = net.bn2(net.conv2(x))
            x = net.bn3(net.conv3(x))
        x = F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=self.dilation.ceil_pool)
        found = []
        for number, name in enumerate(_LAYERS, start=1):
            x = run_blocks(getattr(net, name), x, self.recompute)
            if number in self.taps:
                found.append(x)
        return tuple(found)

    def _stem(self) -> nn.Sequential:
        act = activated(self.norm, self.activation)
        widths = ((self.in_channels, 64, 2), (64, 64, 1), (64, 128, 1))
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (wide_in, wide_out, stride) in enumerate(widths, start=1):
            layers[f"conv{number}"] = conv3x3(wide_in, wide_out, stride)
            layers[f"bn{number}"] = act(wide_out)
        return nn.Sequential(layers)


def _he_deviation(conv: nn.Conv2d) -> float:
    rows, columns = conv.kernel_size
    return math.sqrt(2 / (rows * columns * conv.out_channels))
