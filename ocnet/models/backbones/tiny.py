# SPDX-License-Identifier: MIT
"""A small encoder for demonstrations and tests."""

from itertools import pairwise

from torch import Tensor, nn

from ocnet.models.backbones.features import Features
from ocnet.modules import BATCHNORM, Norm


class TinyEncoder(nn.Module):
    """Encode images at a quarter of their resolution by four 3x3 convolutions, each with ``ABN``.

    Strides 2, 1, 2, 1 and channels ``width, width, 2 * width, 2 * width``; each output sees 19 x 19
    pixels.

    Args:
        in_channels: Channels of the images.
        width: Channels of the first two layers.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.
    """

    def __init__(self, in_channels: int = 3, width: int = 32, norm: Norm = BATCHNORM) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.aux_channels = 2 * width
        self.out_channels = 2 * width
        widths = (in_channels, width, width, 2 * width, 2 * width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, stride, padding=1, bias=False), norm(o))
            for (i, o), stride in zip(pairwise(widths), (2, 1, 2, 1), strict=True)
        )

    def forward(self, images: Tensor) -> Features:
        """Return features of images ``(N, in_channels, H, W)``; ``aux`` is the third layer."""
        x = images
        for layer in self.layers[:-1]:
            x = layer(x)
        return Features(aux=x, out=self.layers[-1](x))
