# SPDX-License-Identifier: MIT
"""The local control of the Base-OC head."""

from torch import Tensor, nn

from ocnet.modules import BATCHNORM, BaseLocal, Norm
from ocnet.modules._checks import check_positive


class LocalHead(nn.Module):
    """Classify each pixel from its features and its neighbourhood, without attention.

    The parameter-matched control of ``BaseOCHead``: layers, names and parameter count are those
    of ``BaseOCHead`` with one block.

    Args:
        in_channels: Channels ``C`` of the features.
        num_classes: Classes ``K``.
        channels: Width of the head.
        key_channels: Channels of the first factor.
        value_channels: Channels of the second factor; must equal ``key_channels``.
        dropout: Fraction of channels dropped in training.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: int = 512,
        key_channels: int = 256,
        value_channels: int = 256,
        dropout: float = 0.05,
        norm: Norm = BATCHNORM,
    ) -> None:
        super().__init__()
        check_positive("LocalHead", "num_classes", num_classes)
        self.context = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1),
            norm(channels),
            BaseLocal(channels, channels, key_channels, value_channels, dropout, norm=norm),
        )
        self.cls = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(N, K, h, w)`` of features ``(N, C, h, w)``."""
        logits: Tensor = self.cls(self.context(features))
        return logits
