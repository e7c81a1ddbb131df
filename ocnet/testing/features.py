# SPDX-License-Identifier: MIT
"""Models of the features that attention meets, from easy to hard for its numbers.

Independent gaussian noise alone tells little: with shared keys every pixel is then most similar to
itself, the softmax sits on the diagonal, and the gradient of the features is a small difference of
large numbers. That is one of the models here (``peaked``); the others are what networks make.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SLOPE = 0.01  # of the leaky ReLU after OCNet's key transform


def activated(shape: tuple[int, int, int, int], g: torch.Generator) -> Tensor:
    """Noise through leaky ReLU: every score is positive, and the softmax is broad."""
    return F.leaky_relu(_noise(shape, g), SLOPE)


def clustered(shape: tuple[int, int, int, int], g: torch.Generator) -> Tensor:
    """Pixels of a few classes in patches, each near its class's prototype, through leaky ReLU."""
    n, c, h, w = shape
    classes, patch = 6, 3
    rows, columns = -(-h // patch), -(-w // patch)
    labels = torch.randint(0, classes, (n, rows, columns), generator=g)
    labels = labels.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, :h, :w]
    prototypes = _noise((classes, c, 1, 1), g)[:, :, 0, 0]
    centres = prototypes[labels].permute(0, 3, 1, 2)
    return F.leaky_relu(centres + 0.5 * _noise(shape, g), SLOPE)


def smooth(shape: tuple[int, int, int, int], g: torch.Generator) -> Tensor:
    """Noise of low resolution, enlarged, through leaky ReLU: neighbours are alike."""
    n, c, h, w = shape
    coarse = _noise((n, c, max(2, h // 4), max(2, w // 4)), g)
    enlarged = F.interpolate(coarse, size=(h, w), mode="bilinear", align_corners=False)
    return F.leaky_relu(enlarged, SLOPE)


def peaked(shape: tuple[int, int, int, int], g: torch.Generator) -> Tensor:
    """Plain noise: with shared keys and many channels the softmax is nearly one-hot."""
    return _noise(shape, g)


def _noise(shape: tuple[int, int, int, int], g: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


FEATURES = {"activated": activated, "clustered": clustered, "smooth": smooth, "peaked": peaked}
