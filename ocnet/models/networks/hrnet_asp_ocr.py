# SPDX-License-Identifier: MIT
"""openseg's ASP-OCR on HRNet."""

from collections.abc import Sequence

from torch import Tensor, nn

from ocnet.heads import classifier
from ocnet.models.backbones import Body
from ocnet.models.segmentor import Logits, Segmentor
from ocnet.models.style import Style
from ocnet.modules import ASPOCR


class HRNetASPOCRNet(Segmentor):
    """``OpensegASPOCRNet`` on HRNet, with twice the dilations, as its features are twice as fine.

    Args:
        body: The backbone; features of one map.
        num_classes: Classes ``K``, and regions.
        style: Norms, activation and back end.
        channels: Width of the auxiliary head; each branch of ``ASPOCR``, and its output, have half of it.
        key_channels: Channels of queries, keys and values; half of a branch by default.
        dropout: Fraction of channels that the head drops in training.
        dilations: Of the dilated branches.

    Source: ``hrnet_w48_asp_ocr`` of openseg.
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
        dilations: Sequence[int] = (24, 48, 72),
    ) -> None:
        super().__init__(body)
        wide, branch = body.channels[-1], max(1, channels // 2)
        self.asp_ocr_head = ASPOCR(
            wide, branch, branch, key_channels, dilations, dropout, style.backend, style.act
        )
        self.cls_head = nn.Conv2d(branch, num_classes, 1, bias=False)
        self.aux_head = classifier(
            wide, num_classes, channels, None, class_bias=False, norm=style.act
        )

    def classify(self, features: tuple[Tensor, ...]) -> Logits:
        """Return logits at the resolution of the features."""
        aux: Tensor = self.aux_head(features[-1])
        return Logits(aux, self.cls_head(self.asp_ocr_head(features[-1], aux)))
