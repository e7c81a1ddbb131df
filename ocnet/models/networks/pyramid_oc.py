# SPDX-License-Identifier: MIT
"""OCNet's Pyramid-OC."""

from collections.abc import Sequence

from torch import Tensor, nn

from ocnet.heads import classifier
from ocnet.models.backbones import Body
from ocnet.models.segmentor import Logits, Segmentor
from ocnet.models.style import Style
from ocnet.modules import PyramidOC


class PyramidOCNet(Segmentor):
    """Classify each pixel from its features and its object context within cells of several grids.

    3x3 convolution and norm, ``PyramidOC``, then a 1x1 convolution to the classes. Nothing activates
    before the context, nor in the auxiliary head, which is linear.

    Args:
        body: The backbone; features of two layers, the first for the auxiliary head.
        num_classes: Classes ``K``.
        style: Norms, activation and back end.
        channels: Width of the heads.
        key_channels: Channels of queries and keys; half of ``channels`` by default.
        value_channels: Channels of the values; ``channels`` by default.
        dropout: Fraction of channels that the heads drop in training.
        sizes: Cells to a side, of each grid.
        aux: Whether there is an auxiliary head.

    Source: ``resnet101_pyramid_oc_dsn`` of the code of OCNet (arXiv 1809.00916).
    """

    flat = True

    def __init__(
        self,
        body: Body,
        num_classes: int,
        style: Style,
        *,
        channels: int = 512,
        key_channels: int | None = None,
        value_channels: int | None = None,
        dropout: float = 0.05,
        sizes: Sequence[int] = (1, 2, 3, 6),
        aux: bool = True,
    ) -> None:
        super().__init__(body)
        self.layer5 = nn.Sequential(
            nn.Conv2d(body.channels[-1], channels, 3, padding=1), style.plain(channels)
        )
        self.context = PyramidOC(
            channels,
            channels,
            max(1, channels // 2) if key_channels is None else key_channels,
            channels if value_channels is None else value_channels,
            dropout,
            sizes,
            style.backend,
            style.act,
        )
        self.cls = nn.Conv2d(channels, num_classes, 1)
        self.dsn = None
        if aux:
            self.dsn = classifier(
                body.channels[0], num_classes, channels, dropout, norm=style.plain
            )

    def classify(self, features: tuple[Tensor, ...]) -> Logits:
        """Return logits at the resolution of the features."""
        aux = self.auxiliary(self.dsn, features[0])
        return Logits(aux, self.cls(self.context(self.layer5(features[-1]))))
