# SPDX-License-Identifier: MIT
"""OCNet's baseline, without context."""

from torch import Tensor, nn

from ocnet.models.backbones import Body
from ocnet.models.segmentor import Logits, Segmentor
from ocnet.models.style import Style


class BaselineNet(Segmentor):
    """Classify each pixel from its features: 3x3 convolution, ``ABN``, dropout, 1x1 convolution.

    Args:
        body: The backbone; features of two layers, of which the last is taken.
        num_classes: Classes ``K``.
        style: Norms and activation.
        channels: Width of the head.
        dropout: Fraction of channels dropped in training.

    Source: ``resnet101_baseline`` of the code of OCNet (arXiv 1809.00916). No auxiliary head.
    """

    flat = True

    def __init__(
        self,
        body: Body,
        num_classes: int,
        style: Style,
        *,
        channels: int = 512,
        dropout: float = 0.05,
    ) -> None:
        super().__init__(body)
        self.layer5 = nn.Sequential(
            nn.Conv2d(body.channels[-1], channels, 3, padding=1),
            style.act(channels),
            nn.Dropout2d(dropout),
        )
        self.layer6 = nn.Conv2d(channels, num_classes, 1)

    def classify(self, features: tuple[Tensor, ...]) -> Logits:
        """Return logits at the resolution of the features."""
        return Logits(None, self.layer6(self.layer5(features[-1])))
