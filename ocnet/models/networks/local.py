# SPDX-License-Identifier: MIT
"""The local control of Base-OC."""

from torch import Tensor, nn

from ocnet.heads import classifier
from ocnet.models.backbones import Body
from ocnet.models.segmentor import Logits, Segmentor
from ocnet.models.style import Style
from ocnet.modules import BaseLocal


class LocalNet(Segmentor):
    """Classify each pixel from its features and its neighbourhood, without attention.

    The parameter-matched control of ``BaseOCNet``: layers, names and parameters are those of
    ``BaseOCNet`` with one block.

    Args:
        body: The backbone; features of two layers, the first for the auxiliary head.
        num_classes: Classes ``K``.
        style: Norms and activation.
        channels: Width of the heads.
        key_channels: Channels of the first factor; half of ``channels`` by default.
        value_channels: Channels of the second factor; must equal ``key_channels``.
        dropout: Fraction of channels that the heads drop in training.
        aux: Whether there is an auxiliary head.
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
        aux: bool = True,
    ) -> None:
        super().__init__(body)
        half = max(1, channels // 2)
        key = half if key_channels is None else key_channels
        value = half if value_channels is None else value_channels
        self.context = nn.Sequential(
            nn.Conv2d(body.channels[-1], channels, 3, padding=1),
            style.act(channels),
            BaseLocal(channels, channels, key, value, dropout, norm=style.act),
        )
        self.cls = nn.Conv2d(channels, num_classes, 1)
        self.dsn = None
        if aux:
            self.dsn = classifier(body.channels[0], num_classes, channels, dropout, norm=style.act)

    def classify(self, features: tuple[Tensor, ...]) -> Logits:
        """Return logits at the resolution of the features."""
        aux = self.auxiliary(self.dsn, features[0])
        return Logits(aux, self.cls(self.context(features[-1])))
