# SPDX-License-Identifier: MIT
"""A small encoder for demonstrations and tests."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from ocnet.modules import BATCHNORM, Norm


@dataclass(frozen=True)
class TinyBody:
    """Encode images at a quarter of their resolution by four 3x3 convolutions, each with ``ABN``.

    Strides 2, 1, 2, 1 and channels ``width, width, 2 * width, 2 * width``; each output sees 19 x 19
    pixels. The features are the last two maps. See ``Body``.

    Attributes:
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.
        in_channels: Channels of the images.
        width: Channels of the first two layers.
    """

    norm: Norm = BATCHNORM
    in_channels: int = 3
    width: int = 32

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the two maps of features."""
        return (2 * self.width, 2 * self.width)

    def mount(self, net: Any) -> None:
        """Add the layers to a module, as its children."""
        widths = (self.in_channels, self.width, self.width, 2 * self.width, 2 * self.width)
        net.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, stride, padding=1, bias=False), self.norm(o))
            for (i, o), stride in zip(pairwise(widths), (2, 1, 2, 1), strict=True)
        )

    def features(self, net: Any, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of the last two layers for images ``(N, in_channels, H, W)``."""
        x = images
        for layer in net.layers[:-1]:
            x = layer(x)
        return x, net.layers[-1](x)
