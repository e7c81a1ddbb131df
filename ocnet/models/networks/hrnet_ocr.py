# SPDX-License-Identifier: MIT
"""openseg's OCR and OCR_B on HRNet."""

from torch import Tensor, nn

from ocnet.heads import classifier
from ocnet.models.backbones import Body
from ocnet.models.segmentor import Logits, Segmentor
from ocnet.models.style import Style
from ocnet.modules import OCR, SpatialGather


class HRNetOCRNet(Segmentor):
    """``OpensegOCRNet`` on HRNet: both heads take the same features.

    Args:
        body: The backbone; features of one map.
        num_classes: Classes ``K``, and regions.
        style: Norms, activation and back end.
        channels: Width of the head; 512, or 256 in OCR_B.
        key_channels: Channels of queries, keys and values; half of ``channels`` by default.
        aux_channels: Width of the auxiliary head; that of the features by default, 256 in OCR_B.
        dropout: Fraction of channels that the head drops in training.

    Source: ``hrnet_w48_ocr`` and ``hrnet_w48_ocr_b`` of openseg.
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
        aux_channels: int | None = None,
        dropout: float = 0.05,
    ) -> None:
        super().__init__(body)
        wide = body.channels[-1]
        self.conv3x3 = nn.Sequential(nn.Conv2d(wide, channels, 3, padding=1), style.act(channels))
        self.ocr_gather_head = SpatialGather(backend=style.backend)
        key = max(1, channels // 2) if key_channels is None else key_channels
        self.ocr_distri_head = OCR(
            channels, key, dropout=dropout, backend=style.backend, norm=style.act
        )
        self.cls_head = nn.Conv2d(channels, num_classes, 1)
        self.aux_head = classifier(
            wide, num_classes, wide if aux_channels is None else aux_channels, None, norm=style.act
        )

    def classify(self, features: tuple[Tensor, ...]) -> Logits:
        """Return logits at the resolution of the features."""
        aux: Tensor = self.aux_head(features[-1])
        x = self.conv3x3(features[-1])
        x = self.ocr_distri_head(x, self.ocr_gather_head(x, aux))
        return Logits(aux, self.cls_head(x))
