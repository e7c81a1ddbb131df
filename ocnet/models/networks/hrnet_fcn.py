# SPDX-License-Identifier: MIT
"""openseg's HRNet without context."""

from torch import Tensor

from ocnet.heads import classifier
from ocnet.models.backbones import Body
from ocnet.models.segmentor import Logits, Segmentor
from ocnet.models.style import Style


class HRNetFCNNet(Segmentor):
    """Classify each pixel from its features. Logits are resized to the images.

    Args:
        body: The backbone; features of one map.
        num_classes: Classes ``K``.
        style: Norms and activation.
        channels: Width of the head; that of the features by default.
        dropout: Fraction of channels dropped in training.

    Source: ``hrnet_w48`` of openseg. No auxiliary head.
    """

    upsamples = True

    def __init__(
        self,
        body: Body,
        num_classes: int,
        style: Style,
        *,
        channels: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(body)
        wide = body.channels[-1]
        self.cls_head = classifier(
            wide,
            num_classes,
            wide if channels is None else channels,
            dropout,
            class_bias=False,
            norm=style.act,
        )

    def classify(self, features: tuple[Tensor, ...]) -> Logits:
        """Return logits at the resolution of the features."""
        return Logits(None, self.cls_head(features[-1]))
