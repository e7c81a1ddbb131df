# SPDX-License-Identifier: MIT
"""openseg's ASP-OCR."""

from collections.abc import Sequence

from torch import Tensor, nn

from ocnet.heads import classifier
from ocnet.models.backbones import Body
from ocnet.models.segmentor import Logits, Segmentor
from ocnet.models.style import Style
from ocnet.modules import ASPOCR


class OpensegASPOCRNet(Segmentor):
    """Classify each pixel from the soft class regions and from dilated convolutions, see ``ASPOCR``.

    Logits are resized to the images.

    Args:
        body: The backbone; features of two layers, the first for the auxiliary head.
        num_classes: Classes ``K``, and regions.
        style: Norms, activation and back end.
        channels: Width of the auxiliary head; each branch of ``ASPOCR``, and its output, have half of it.
        key_channels: Channels of queries, keys and values; half of a branch by default.
        dropout: Fraction of channels that the heads drop in training.
        dilations: Of the dilated branches.

    Source: ``spatial_asp_ocrnet`` of openseg; Yuan, Chen, Wang (arXiv 1909.11065).
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
        dropout: float = 0.1,
        dilations: Sequence[int] = (12, 24, 36),
    ) -> None:
        super().__init__(body)
        branch = max(1, channels // 2)
        self.asp_ocr_head = ASPOCR(
            body.channels[-1], branch, branch, key_channels, dilations, dropout, style.backend,
            style.act,
        )  # fmt: skip
        self.head = nn.Conv2d(branch, num_classes, 1)
        self.dsn_head = classifier(body.channels[0], num_classes, channels, dropout, norm=style.act)

    def classify(self, features: tuple[Tensor, ...]) -> Logits:
        """Return logits at the resolution of the features."""
        aux: Tensor = self.dsn_head(features[0])
        return Logits(aux, self.head(self.asp_ocr_head(features[-1], aux)))
