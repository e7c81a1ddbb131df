# SPDX-License-Identifier: MIT
"""openseg's baseline, without context."""

from torch import Tensor

from ocnet.heads import classifier
from ocnet.models.backbones import Body
from ocnet.models.segmentor import Logits, Segmentor
from ocnet.models.style import Style


class OpensegFCNNet(Segmentor):
    """Classify each pixel from its features. Logits are resized to the images.

    Args:
        body: The backbone; features of two layers, the first for the auxiliary head.
        num_classes: Classes ``K``.
        style: Norms and activation.
        channels: Width of the heads.
        dropout: Fraction of channels that the heads drop in training.
        aux: Whether there is an auxiliary head.

    Source: ``fcnet`` of openseg.
    """

    upsamples = True

    def __init__(
        self,
        body: Body,
        num_classes: int,
        style: Style,
        *,
        channels: int = 512,
        dropout: float = 0.1,
        aux: bool = True,
    ) -> None:
        super().__init__(body)
        early, late = body.channels
        self.cls_head = classifier(
            late, num_classes, channels, dropout, class_bias=False, norm=style.act
        )
        self.dsn_head = None
        if aux:
            self.dsn_head = classifier(
                early, num_classes, channels, dropout, class_bias=False, norm=style.act
            )

    def classify(self, features: tuple[Tensor, ...]) -> Logits:
        """Return logits at the resolution of the features."""
        return Logits(self.auxiliary(self.dsn_head, features[0]), self.cls_head(features[-1]))
