# SPDX-License-Identifier: MIT
"""What all networks have in common, and what they return."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ocnet.models.backbones.body import Backbone, Body
from ocnet.ops._checks import shape_of


class Logits(NamedTuple):
    """What a network returns: logits ``(N, K, h, w)``, the auxiliary ones first, as published.

    Networks of OCNet's code, CE2P and the HRNet repository leave them at the resolution of their
    features; those of openseg resize them to that of the images. Whoever needs labels resizes them, which
    does nothing where that is done: bilinear, ``align_corners=True``.

    Attributes:
        aux: Of the auxiliary head, or of CE2P's first branch. ``None`` where there is none, or where it
            was left out in evaluation.
        main: The result.
        edge: CE2P's logits ``(N, 2, h, w)`` of edges between the parts; ``None`` for all others.
    """

    aux: Tensor | None
    main: Tensor
    edge: Tensor | None = None


class Segmentor(nn.Module):
    """Label every pixel of an image.

    Sub-classes build their heads as children, under published names, and say how features become
    logits.

    Args:
        body: The backbone. Its layers are children of the network itself where the class says
            ``flat``, and of ``backbone`` otherwise.

    Attributes:
        aux_in_eval: Compute auxiliary logits in evaluation too, as published. Without, ``aux`` is ``None``
            there, unless the main logits need it.
    """

    flat = False
    upsamples = False

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.aux_in_eval = True
        if self.flat:
            body.mount(self)
        else:
            self.backbone = Backbone(body)
        self.backbone_children = tuple(name for name, _ in self.named_children())

    def classify(self, features: tuple[Tensor, ...]) -> Logits:
        """Return the logits of the features of the body."""
        raise NotImplementedError(f"{type(self).__name__}: classify must be defined")

    def forward(self, images: Tensor) -> Logits:
        """Return the logits of a batch of images.

        Args:
            images: ``(N, C, H, W)``, floating.

        Raises:
            TypeError: ``images`` are not floating.
            ValueError: ``images`` of another rank or with other channels.
        """
        if not images.is_floating_point():
            raise TypeError(f"Segmentor: images must be floating, got {images.dtype}")
        channels = self.body.in_channels
        if images.dim() != 4 or images.shape[1] != channels:
            raise ValueError(
                f"Segmentor: images must have shape (N, {channels}, H, W), got {shape_of(images)}"
            )
        features = self.body.features(self, images) if self.flat else self.backbone(images)
        logits = self.classify(features)
        if not self.upsamples:
            return logits
        aux = None if logits.aux is None else _resized(logits.aux, images)
        return Logits(aux, _resized(logits.main, images))

    def auxiliary(self, head: nn.Module | None, features: Tensor) -> Tensor | None:
        """Return the logits of an auxiliary head that the main logits do not need, where wanted."""
        if head is None or not (self.training or self.aux_in_eval):
            return None
        logits: Tensor = head(features)
        return logits


def _resized(logits: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=True)
