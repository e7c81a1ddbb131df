# SPDX-License-Identifier: MIT
"""The head of Base-OC."""

from collections.abc import Sequence

from torch import Tensor, nn

from ocnet.modules import BATCHNORM, BaseOC, Norm
from ocnet.modules._checks import check_positive


class BaseOCHead(nn.Module):
    """Classify each pixel from its features and its object context.

    3x3 convolution, ``ABN``, ``BaseOC``, then a 1x1 convolution to the classes.

    Args:
        in_channels: Channels ``C`` of the features.
        num_classes: Classes ``K``.
        channels: Width of the head.
        key_channels: Channels of queries and keys.
        value_channels: Channels of the values.
        dropout: Fraction of channels dropped in training.
        sizes: Pooling scale of each object-context block.
        backend: Back end of ``ocnet.ops.oc_attention``.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.

    Source: Yuan and Wang, OCNet (arXiv 1809.00916), Base-OC; the defaults are the published widths.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: int = 512,
        key_channels: int = 256,
        value_channels: int = 256,
        dropout: float = 0.05,
        sizes: Sequence[int] = (1,),
        backend: str = "auto",
        norm: Norm = BATCHNORM,
    ) -> None:
        super().__init__()
        check_positive("BaseOCHead", "num_classes", num_classes)
        self.context = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1),
            norm(channels),
            BaseOC(channels, channels, key_channels, value_channels, dropout, sizes, backend, norm),
        )
        self.cls = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``(N, K, h, w)`` of features ``(N, C, h, w)``."""
        logits: Tensor = self.cls(self.context(features))
        return logits
