# SPDX-License-Identifier: MIT
"""OCNet's ASP-OC."""

from collections.abc import Sequence

from torch import Tensor, nn

from ocnet.heads import classifier
from ocnet.models.backbones import Body
from ocnet.models.segmentor import Logits, Segmentor
from ocnet.models.style import Style
from ocnet.modules import ASPOC


class ASPOCNet(Segmentor):
    """Classify each pixel from its object context and from dilated convolutions.

    3x3 convolution, ``ABN``, ``ASPOC``, then a 1x1 convolution to the classes.

    Args:
        body: The backbone; features of two layers, the first for the auxiliary head.
        num_classes: Classes ``K``.
        style: Norms, activation and back end.
        channels: Width of the heads; each branch of ``ASPOC`` has half of it.
        key_channels: Channels of queries and keys; half of a branch by default.
        value_channels: Channels of the values; those of a branch by default.
        dropout: Fraction of channels that the heads drop in training.
        sizes: Pooling scale of each block of object context.
        dilations: Of the dilated branches.
        aux: Whether there is an auxiliary head.

    Source: ``resnet101_asp_oc_dsn`` of the code of OCNet (arXiv 1809.00916), as of 2019-06.
    """

    flat = True
    # Of the context, and so of all there is behind it.
    shared = True

    def __init__(
        self,
        body: Body,
        num_classes: int,
        style: Style,
        *,
        channels: int = 512,
        key_channels: int | None = None,
        value_channels: int | None = None,
        dropout: float = 0.1,
        sizes: Sequence[int] = (2,),
        dilations: Sequence[int] = (12, 24, 36),
        aux: bool = True,
    ) -> None:
        super().__init__(body)
        branch = max(1, channels // 2)
        self.context = nn.Sequential(
            nn.Conv2d(body.channels[-1], channels, 3, padding=1),
            style.act(channels),
            ASPOC(
                channels, branch, key_channels, value_channels, dilations, dropout, sizes,
                style.backend, style.act, self.shared,
            ),
        )  # fmt: skip
        self.cls = nn.Conv2d(2 * branch, num_classes, 1)
        self.dsn = None
        if aux:
            self.dsn = classifier(
                body.channels[0],
                num_classes,
                channels,
                dropout if self.shared else None,
                norm=style.act,
            )

    def classify(self, features: tuple[Tensor, ...]) -> Logits:
        """Return logits at the resolution of the features."""
        aux = self.auxiliary(self.dsn, features[0])
        return Logits(aux, self.cls(self.context(features[-1])))
