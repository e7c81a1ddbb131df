# SPDX-License-Identifier: MIT
"""The HRNet repository's own HRNet with OCR."""

from torch import Tensor, nn

from ocnet.models.backbones import Body
from ocnet.models.segmentor import Logits, Segmentor
from ocnet.models.style import Style
from ocnet.modules import OCR, SpatialGather, nested


class SegHRNetOCRNet(Segmentor):
    """``HRNetOCRNet`` as the HRNet repository has it.

    The auxiliary head is 1x1, and no convolution of ``OCR`` has a bias. Logits are left at a quarter of the
    size of the images.

    Args:
        body: The backbone; features of one map.
        num_classes: Classes ``K``, and regions.
        style: Norms, activation and back end.
        channels: Width of the head.
        key_channels: Channels of queries, keys and values; half of ``channels`` by default.
        dropout: Fraction of channels that the head drops in training.

    Source: ``seg_hrnet_ocr`` of HRNet-Semantic-Segmentation, branch HRNet-OCR, with its key names, in which
    norms of ``OCR`` end in ``.0``.
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
        dropout: float = 0.05,
    ) -> None:
        super().__init__(body)
        wide = body.channels[-1]
        self.conv3x3_ocr = nn.Sequential(
            nn.Conv2d(wide, channels, 3, padding=1), style.act(channels)
        )
        self.ocr_gather_head = SpatialGather(backend=style.backend)
        key = max(1, channels // 2) if key_channels is None else key_channels
        self.ocr_distri_head = OCR(
            channels, key, dropout=dropout, bias=False, backend=style.backend,
            norm=nested(style.act),
        )  # fmt: skip
        self.cls_head = nn.Conv2d(channels, num_classes, 1)
        # The activation is the norm's; an identity keeps the published number of the layer after it.
        self.aux_head = nn.Sequential(
            nn.Conv2d(wide, wide, 1),
            style.act(wide),
            nn.Identity(),
            nn.Conv2d(wide, num_classes, 1),
        )

    def classify(self, features: tuple[Tensor, ...]) -> Logits:
        """Return logits at the resolution of the features."""
        aux: Tensor = self.aux_head(features[-1])
        x = self.conv3x3_ocr(features[-1])
        x = self.ocr_distri_head(x, self.ocr_gather_head(x, aux))
        return Logits(aux, self.cls_head(x))
