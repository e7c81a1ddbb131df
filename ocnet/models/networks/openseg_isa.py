# SPDX-License-Identifier: MIT
"""openseg's network of interlaced sparse self-attention."""

from collections.abc import Sequence

from torch import Tensor, nn

from ocnet.heads import classifier
from ocnet.models.backbones import Body
from ocnet.models.segmentor import Logits, Segmentor
from ocnet.models.style import Style
from ocnet.modules import ISA


class OpensegISANet(Segmentor):
    """Classify each pixel from its features and its interlaced context.

    3x3 convolution without bias, ``ABN``, ``ISA``, then a 1x1 convolution to the classes. Logits are resized to
    the images.

    Args:
        body: The backbone; features of two layers, the first for the auxiliary head.
        num_classes: Classes ``K``.
        style: Norms, activation and back end.
        channels: Width of the heads.
        key_channels: Channels of queries and keys; half of ``channels`` by default.
        value_channels: Channels of the values; ``channels`` by default.
        dropout: Fraction of channels that the heads drop in training.
        factors: ``(h, w)``, rows and columns of a block, of each interlaced context.
        aux: Whether there is an auxiliary head.

    Source: ``isanet`` of openseg; Huang et al. (arXiv 1907.12273).
    """

    upsamples = True

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
        factors: Sequence[Sequence[int]] = ((8, 8),),
        aux: bool = True,
    ) -> None:
        super().__init__(body)
        self.isa_head = nn.Sequential(
            nn.Conv2d(body.channels[-1], channels, 3, padding=1, bias=False),
            style.act(channels),
            ISA(
                channels,
                channels,
                max(1, channels // 2) if key_channels is None else key_channels,
                channels if value_channels is None else value_channels,
                dropout,
                factors,
                style.backend,
                style.act,
            ),
        )
        self.cls_head = nn.Conv2d(channels, num_classes, 1)
        self.dsn_head = None
        if aux:
            self.dsn_head = classifier(
                body.channels[0], num_classes, channels, dropout, bias=False, norm=style.act
            )

    def classify(self, features: tuple[Tensor, ...]) -> Logits:
        """Return logits at the resolution of the features."""
        aux = self.auxiliary(self.dsn_head, features[0])
        return Logits(aux, self.cls_head(self.isa_head(features[-1])))
