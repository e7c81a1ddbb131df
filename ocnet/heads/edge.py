# SPDX-License-Identifier: MIT
"""CE2P's branch of edges between parts."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocnet.modules import BATCHNORM, Norm
from ocnet.modules._transforms import conv_abn

_CLASSES = 2


class Edge(nn.Module):
    """Find the edges between parts in the features of three layers.

    Each layer has a 1x1 convolution with ``ABN``; one 3x3 convolution makes edge logits of all three.
    Logits and features are resized to the first layer bilinearly, ``align_corners=True``.

    Args:
        in_channels: Channels of the three layers.
        channels: Channels of the features of each.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.

    Source: CE2P (arXiv 1809.05996), with the key names of its code: ``conv1`` to ``conv5``.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int = 256, norm: Norm = BATCHNORM
    ) -> None:
        super().__init__()
        first, second, third = in_channels
        self.conv1 = conv_abn(first, channels, False, norm)
        self.conv2 = conv_abn(second, channels, False, norm)
        self.conv3 = conv_abn(third, channels, False, norm)
        self.conv4 = nn.Conv2d(channels, _CLASSES, 3, padding=1)
        self.conv5 = nn.Conv2d(3 * _CLASSES, _CLASSES, 1)

    def forward(self, first: Tensor, second: Tensor, third: Tensor) -> tuple[Tensor, Tensor]:
        """Return edge logits ``(N, 2, h, w)`` and features ``(N, 3 * channels, h, w)``, sized as ``first``."""
        features = [self.conv1(first), self.conv2(second), self.conv3(third)]
        size = first.shape[-2:]
        logits = [_resized(self.conv4(x), size) for x in features]
        joined = [_resized(x, size) for x in features]
        return self.conv5(torch.cat(logits, dim=1)), torch.cat(joined, dim=1)


def _resized(x: Tensor, size: torch.Size) -> Tensor:
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
