# SPDX-License-Identifier: MIT
"""CE2P's decoder: coarse context joined to fine features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocnet.modules import BATCHNORM, Norm
from ocnet.modules._transforms import conv_abn

_FINE = 48


class Decoder(nn.Module):
    """Resize a context to the resolution of early features, join the two, and classify.

    Args:
        in_channels: Channels of the context.
        fine_channels: Channels of the early features.
        num_classes: Classes ``K``.
        channels: Channels of the result.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.

    Note:
        The one resizing of the published networks with ``align_corners=False``: the code of CE2P does not
        say, and that is what torch has taken since.

    Source: CE2P (arXiv 1809.05996), with the key names of its code: ``conv1`` to ``conv4``.
    """

    def __init__(
        self,
        in_channels: int,
        fine_channels: int,
        num_classes: int,
        channels: int = 256,
        norm: Norm = BATCHNORM,
    ) -> None:
        super().__init__()
        self.conv1 = conv_abn(in_channels, channels, False, norm)
        self.conv2 = conv_abn(fine_channels, _FINE, False, norm)
        self.conv3 = nn.Sequential(
            *conv_abn(channels + _FINE, channels, False, norm),
            *conv_abn(channels, channels, False, norm),
        )
        self.conv4 = nn.Conv2d(channels, num_classes, 1)

    def forward(self, context: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(N, K, h, w)`` and features ``(N, channels, h, w)``, of the size of ``fine``.

        Args:
            context: ``(N, in_channels, ...)``, coarser.
            fine: ``(N, fine_channels, h, w)``.
        """
        size = fine.shape[-2:]
        coarse = F.interpolate(self.conv1(context), size=size, mode="bilinear", align_corners=False)
        features: Tensor = self.conv3(torch.cat([coarse, self.conv2(fine)], dim=1))
        return self.conv4(features), features
