# SPDX-License-Identifier: MIT
"""The head of the baseline without context."""

from torch import Tensor, nn

from ocnet.modules import BATCHNORM, Norm
from ocnet.modules._checks import check_positive


class FCNHead(nn.Module):
    """Classify each pixel from its features: 3x3 convolution, ``ABN``, dropout, 1x1 convolution.

    Args:
        in_channels: Channels ``C`` of the features.
        num_classes: Classes ``K``.
        channels: Width of the head.
        dropout: Fraction of channels dropped in training.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.

    Source: the baseline of Yuan and Wang, OCNet (arXiv 1809.00916), with the key names of its code.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: int = 512,
        dropout: float = 0.05,
        norm: Norm = BATCHNORM,
    ) -> None:
        super().__init__()
        check_positive("FCNHead", "num_classes", num_classes)
        self.layer5 = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1), norm(channels), nn.Dropout2d(dropout)
        )
        self.layer6 = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(N, K, h, w)`` of features ``(N, C, h, w)``."""
        logits: Tensor = self.layer6(self.layer5(features))
        return logits
