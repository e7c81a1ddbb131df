# SPDX-License-Identifier: MIT
"""openseg's OCR, of which Fast-OCNet was the early name."""

from torch import Tensor, nn

from ocnet.heads import classifier
from ocnet.models.backbones import Body
from ocnet.models.segmentor import Logits, Segmentor
from ocnet.models.style import Style
from ocnet.modules import OCR, SpatialGather


class OpensegOCRNet(Segmentor):
    """Classify each pixel from its features and those of the soft class regions.

    3x3 convolution, ``ABN``, ``SpatialGather`` by the auxiliary logits, ``OCR``, then a 1x1 convolution to
    the classes. Logits are resized to the images.

    Args:
        body: The backbone; features of two layers, the first for the auxiliary head.
        num_classes: Classes ``K``, and regions.
        style: Norms, activation and back end.
        channels: Width of the heads.
        key_channels: Channels of queries, keys and values; half of ``channels`` by default.
        dropout: Fraction of channels that the heads drop in training.

    Source: ``spatial_ocrnet`` of openseg; Yuan, Chen, Wang (arXiv 1909.11065).
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
        dropout: float = 0.05,
    ) -> None:
        super().__init__(body)
        self.conv_3x3 = nn.Sequential(
            nn.Conv2d(body.channels[-1], channels, 3, padding=1), style.act(channels)
        )
        self.spatial_context_head = SpatialGather(backend=style.backend)
        key = max(1, channels // 2) if key_channels is None else key_channels
        self.spatial_ocr_head = OCR(
            channels, key, dropout=dropout, backend=style.backend, norm=style.act
        )
        self.head = nn.Conv2d(channels, num_classes, 1)
        self.dsn_head = classifier(body.channels[0], num_classes, channels, dropout, norm=style.act)

    def classify(self, features: tuple[Tensor, ...]) -> Logits:
        """Return logits at the resolution of the features."""
        aux: Tensor = self.dsn_head(features[0])
        x = self.conv_3x3(features[-1])
        x = self.spatial_ocr_head(x, self.spatial_context_head(x, aux))
        return Logits(aux, self.head(x))
