# SPDX-License-Identifier: MIT
"""OCNet's Base-OC."""

from collections.abc import Sequence

from torch import Tensor, nn

from ocnet.heads import classifier
from ocnet.models.backbones import Body
from ocnet.models.segmentor import Logits, Segmentor
from ocnet.models.style import Style
from ocnet.modules import BaseOC


class BaseOCNet(Segmentor):
    """Classify each pixel from its features and its object context.

    3x3 convolution, ``ABN``, ``BaseOC``, then a 1x1 convolution to the classes.

    Args:
        body: The backbone; features of two layers, the first for the auxiliary head.
        num_classes: Classes ``K``.
        style: Norms, activation and back end.
        channels: Width of the heads.
        key_channels: Channels of queries and keys; half of ``channels`` by default.
        value_channels: Channels of the values; likewise.
        dropout: Fraction of channels that the heads drop in training.
        sizes: Pooling scale of each block of object context; ``(2,)`` is OCNet's advice for 11 GB.
        aux: Whether there is an auxiliary head.

    Source: ``resnet101_base_oc_dsn`` of the code of OCNet (arXiv 1809.00916); the defaults are the
    published numbers.
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
        sizes: Sequence[int] = (1,),
        aux: bool = True,
    ) -> None:
        super().__init__(body)
        half = max(1, channels // 2)
        self.context = nn.Sequential(
            nn.Conv2d(body.channels[-1], channels, 3, padding=1),
            style.act(channels),
            BaseOC(
                channels,
                channels,
                half if key_channels is None else key_channels,
                half if value_channels is None else value_channels,
                dropout,
                sizes,
                style.backend,
                style.act,
            ),
        )
        self.cls = nn.Conv2d(channels, num_classes, 1)
        self.dsn = None
        if aux:
            self.dsn = classifier(body.channels[0], num_classes, channels, dropout, norm=style.act)

    def classify(self, features: tuple[Tensor, ...]) -> Logits:
        """Return logits at the resolution of the features."""
        aux = self.auxiliary(self.dsn, features[0])
        return Logits(aux, self.cls(self.context(features[-1])))
