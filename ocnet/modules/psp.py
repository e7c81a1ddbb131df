# SPDX-License-Identifier: MIT
"""Pyramid pooling: the context that CE2P has where no object context takes its place."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocnet.modules._checks import check_positive
from ocnet.modules._transforms import conv_abn
from ocnet.modules.norms import BATCHNORM, Norm


class PSP(nn.Module):
    """Join features and their means over grids of several sizes: ``ABN(conv3x3([m_1, ..., x]))``.

    Each mean is a 1x1 convolution with ``ABN`` of the adaptive average over ``size x size`` cells, resized
    back bilinearly with ``align_corners=True``. No convolution has a bias.

    Args:
        in_channels: Channels ``C`` of the input.
        out_channels: Channels of the output, and of each mean.
        sizes: Cells to a side, of each mean.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.

    Raises:
        ValueError: Empty ``sizes``, or an entry below 1.

    Source: Zhao et al., PSPNet (CVPR 2017), in the form of CE2P's code, without dropout. Key names are
    those of that code: ``stages.{i}.1``, ``.2``; ``bottleneck.0``, ``.1``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 512,
        sizes: Sequence[int] = (1, 2, 3, 6),
        norm: Norm = BATCHNORM,
    ) -> None:
        super().__init__()
        if len(sizes) == 0:
            raise ValueError("PSP: sizes must name at least one number of cells, got none")
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(check_positive("PSP", "sizes", size)),
                *conv_abn(in_channels, out_channels, False, norm),
            )
            for size in sizes
        )
        width = in_channels + len(sizes) * out_channels
        self.bottleneck = conv_abn(width, out_channels, False, norm, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, out_channels, H, W)`` of features ``(N, C, H, W)``."""
        means = [
            F.interpolate(stage(x), size=x.shape[-2:], mode="bilinear", align_corners=True)
            for stage in self.stages
        ]
        joined: Tensor = self.bottleneck(torch.cat([*means, x], dim=1))
        return joined
