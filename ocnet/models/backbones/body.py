# SPDX-License-Identifier: MIT
"""What a backbone is: a description that builds its layers on any module, and runs them there."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Body(Protocol):
    """A backbone, apart from the module that holds its layers.

    Published networks disagree on where the layers are: on the network itself (``layer1``) or below it
    (``backbone.layer1``). So a body mounts them on the module it is given.

    Attributes:
        in_channels: Channels of the images.
        channels: Channels of each map of features.
    """

    @property
    def in_channels(self) -> int:
        """Channels of the images."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each map of features."""

    def mount(self, net: Any) -> None:
        """Add the layers to a module, as its children."""

    def features(self, net: Any, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of features of images ``(N, in_channels, H, W)``, run by the layers of ``net``."""


class Backbone(nn.Module):
    """A body in a module of its own.

    Args:
        body: The body; its layers become children of this module.
    """

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        body.mount(self)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of features of images ``(N, in_channels, H, W)``."""
        return self.body.features(self, images)


def run_blocks(blocks: nn.Sequential, x: Tensor, recompute: bool) -> Tensor:
    """Run residual blocks one after another.

    Args:
        blocks: The blocks.
        x: What the first one takes.
        recompute: Keep only what is between the blocks for the backward pass, and compute what is in
            them again there: memory for time.
    """
    if not (recompute and blocks.training and torch.is_grad_enabled()):
        out: Tensor = blocks(x)
        return out
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False)
    return x


def reinitialise(modules: Any, std_of: Callable[[nn.Conv2d], float]) -> None:
    """Draw the weights of every convolution below a module from a normal distribution.

    Args:
        modules: Modules whose convolutions are meant, themselves and all below.
        std_of: Deviation of the weights of a convolution.
    """
    for module in modules:
        for conv in module.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.normal_(conv.weight, std=std_of(conv))
