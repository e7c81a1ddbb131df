# SPDX-License-Identifier: MIT
"""CE2P for human parsing, with pyramid pooling or with ASP-OC for its context."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ocnet.heads import Decoder, Edge
from ocnet.models.backbones import Body
from ocnet.models.segmentor import Logits, Segmentor
from ocnet.models.style import Style
from ocnet.modules import ASPOC, PSP

_CONTEXTS = ("psp", "asp_oc")


class CE2PNet(Segmentor):
    """Label the parts of a person: context, a decoder on fine features, and a branch of edges.

    ``aux`` are the logits of the decoder, ``main`` those of decoder and edge features together, ``edge``
    those of edges; all at a quarter of the size of the images, and always there.

    Args:
        body: The backbone; features of its four layers.
        num_classes: Classes ``K``.
        style: Norms, activation and back end.
        channels: Width of decoder and edge branch; the context has twice as many.
        context: ``psp``, as published, or ``asp_oc``.
        dropout: Fraction of channels that the last head, and ``asp_oc``, drop in training.
        sizes: Of the context: cells of ``psp`` to a side, or pooling scales of ``asp_oc``; as published
            by default.
        dilations: Of the dilated branches of ``asp_oc``.

    Raises:
        ValueError: Another ``context``.

    Note:
        OCNet's entry for LIP is CE2P with ASP-OC in the place of PSP; its code was not published. Branches
        of 256 channels on ``layer4`` and half the dilations at stride 16 are what openseg has in that place.

    Source: CE2P (arXiv 1809.05996), with the key names of its code: ``layer5``, ``edge_layer``, ``layer6``,
    ``layer7``.
    """

    flat = True

    def __init__(
        self,
        body: Body,
        num_classes: int,
        style: Style,
        *,
        channels: int = 256,
        context: str = "psp",
        dropout: float = 0.1,
        sizes: Sequence[int] | None = None,
        dilations: Sequence[int] = (6, 12, 18),
    ) -> None:
        super().__init__(body)
        if context not in _CONTEXTS:
            raise ValueError(
                f"create: context must be one of {', '.join(_CONTEXTS)}, got {context!r}"
            )
        late, norm = body.channels[-1], style.act
        self.layer5: nn.Module
        if context == "psp":
            self.layer5 = PSP(late, 2 * channels, (1, 2, 3, 6) if sizes is None else sizes, norm)
        else:
            self.layer5 = ASPOC(
                late, channels, dilations=dilations, dropout=dropout,
                sizes=(2,) if sizes is None else sizes,
                backend=style.backend, norm=norm,
            )  # fmt: skip
        self.edge_layer = Edge(body.channels[:3], channels, norm)
        self.layer6 = Decoder(2 * channels, body.channels[0], num_classes, channels, norm)
        self.layer7 = nn.Sequential(
            nn.Conv2d(4 * channels, channels, 1, bias=False),
            norm(channels),
            nn.Dropout2d(dropout),
            nn.Conv2d(channels, num_classes, 1),
        )

    def classify(self, features: tuple[Tensor, ...]) -> Logits:
        """Return logits at the resolution of the first layer."""
        context = self.layer5(features[-1])
        edge, edge_features = self.edge_layer(*features[:3])
        aux, decoded = self.layer6(context, features[0])
        main: Tensor = self.layer7(torch.cat([decoded, edge_features], dim=1))
        return Logits(aux, main, edge)
