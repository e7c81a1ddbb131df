# SPDX-License-Identifier: MIT
"""Backbone, head and auxiliary head in one network."""

from torch import Tensor, nn

from ocnet.models.backbones.features import Features
from ocnet.ops._checks import shape_of


class Segmentor(nn.Module):
    """Label every pixel of an image: a backbone, a head, and an auxiliary head for training.

    Logits stay at feature resolution; the loss and the evaluation resize them with
    ``align_corners=True``.

    Args:
        backbone: Images to ``Features``; has ``in_channels``.
        head: ``Features.out`` to logits.
        aux_head: ``Features.aux`` to logits, in training only.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, aux_head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.aux_head = aux_head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the logits of a batch of images.

        Args:
            images: ``(N, C, H, W)``, floating.

        Returns:
            ``{"main": (N, K, h, w)}``; in training, and with an auxiliary head, also ``"aux"`` of
            that shape.

        Raises:
            TypeError: ``images`` are not floating.
            ValueError: ``images`` of another rank or with other channels.
        """
        if not images.is_floating_point():
            raise TypeError(f"Segmentor: images must be floating, got {images.dtype}")
        channels = self.backbone.in_channels
        if images.dim() != 4 or images.shape[1] != channels:
            raise ValueError(
                f"Segmentor: images must have shape (N, {channels}, H, W), got {shape_of(images)}"
            )
        features: Features = self.backbone(images)
        logits = {"main": self.head(features.out)}
        if self.training and self.aux_head is not None:
            logits["aux"] = self.aux_head(features.aux)
        return logits
