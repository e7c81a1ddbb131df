# SPDX-License-Identifier: MIT
"""The published testers once more, in NumPy and in plain loops, and networks to ask."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

Array = NDArray[np.float64]
Ask = Callable[[Array], Array]  # (C, H, W) to logits (K, h, w)


class Result(NamedTuple):
    main: Tensor


class Places(nn.Module):
    """Logits at half the resolution, that depend on pictures and on places in them."""

    def __init__(self, classes: int = 4, channels: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.kernel = torch.randn(classes, channels, 3, 3, generator=generator).double()
        self.slopes = torch.randn(classes, 2, generator=generator).double()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Result:
        self.seen.append(tuple(images.shape))
        logits = F.conv2d(images, self.kernel.to(images), stride=2, padding=1) / 4
        rows = torch.arange(logits.shape[2]).to(images)[:, None]
        columns = torch.arange(logits.shape[3]).to(images)
        slopes = self.slopes.to(images)[:, :, None, None]
        return Result(logits + (slopes[:, 0] * rows + slopes[:, 1] * columns) / 8)


class Pixels(nn.Module):
    """Logits of single pixels: tiles cannot matter."""

    def __init__(self, classes: int = 4, channels: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.kernel = torch.randn(classes, channels, 1, 1, generator=generator)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Result:
        self.seen.append(tuple(images.shape))
        return Result(F.conv2d(images, self.kernel.to(images)))


def asking(model: nn.Module) -> Ask:
    def ask(image: Array) -> Array:
        logits: Array = model(torch.from_numpy(image.copy())[None]).main[0].numpy()
        return logits

    return ask


def zoom(maps: Array, size: Sequence[int]) -> Array:
    """Bilinear with aligned corners, pixel by pixel of the longer way."""
    for axis, length in ((1, size[0]), (2, size[1])):
        old = maps.shape[axis]
        taken = []
        for i in range(length):
            place = i * (old - 1) / (length - 1) if length > 1 else 0.0
            below = min(math.floor(place), old - 1)
            above = min(below + 1, old - 1)
            part = place - below
            taken.append((1 - part) * maps.take(below, axis) + part * maps.take(above, axis))
        maps = np.stack(taken, axis)
    return maps


def half_up(length: float) -> int:
    return math.floor(length + 0.5)


def scaled(image: Array, scale: float) -> Array:
    return zoom(image, (half_up(image.shape[1] * scale), half_up(image.shape[2] * scale)))


def bell(length: int) -> list[float]:
    middle, deviation = (length - 1) / 2, length / 8
    return [math.exp(-(((i - middle) / deviation) ** 2) / 2) for i in range(length)]


def slide(
    look: Callable[[Array], Array],
    image: Array,
    tile: tuple[int, int],
    stride: tuple[int, int],
    border: str = "shift",
    blend: str = "count",
) -> Array:
    """Blend tiles pixel by pixel; ``look`` gives scores of the size of a tile."""
    height, width = image.shape[1:]
    rows = math.ceil(max(height - tile[0], 0) / stride[0]) + 1
    columns = math.ceil(max(width - tile[1], 0) / stride[1]) + 1
    weights = [bell(n) if blend == "gaussian" else [1.0] * n for n in tile]
    sums = counts = None
    for r in range(rows):
        for c in range(columns):
            top, left = r * stride[0], c * stride[1]
            if border == "shift":
                top = max(min(top + tile[0], height) - tile[0], 0)
                left = max(min(left + tile[1], width) - tile[1], 0)
            padded = np.zeros((len(image), *tile))
            piece = image[:, top : top + tile[0], left : left + tile[1]]
            padded[:, : piece.shape[1], : piece.shape[2]] = piece
            scores = look(padded)
            if sums is None or counts is None:
                sums, counts = np.zeros((len(scores), height, width)), np.zeros((height, width))
            for y in range(piece.shape[1]):
                for x in range(piece.shape[2]):
                    weight = weights[0][y] * weights[1][x]
                    sums[:, top + y, left + x] += weight * scores[:, y, x]
                    counts[top + y, left + x] += weight
    assert sums is not None
    assert counts is not None
    assert (counts > 0).all()
    return sums / counts


def ocnet(
    ask: Ask, image: Array, scales: Sequence[float], tile: tuple[int, int], flip: bool
) -> Array:
    """OCNet's eval.py: whole up to scale 1, tiles above; the mean of everything."""
    size = image.shape[1:]

    def at_scale(picture: Array, scale: float) -> Array:
        if scale <= 1:
            return zoom(ask(scaled(picture, scale)), size)
        seen = slide(lambda piece: zoom(ask(piece), tile), scaled(picture, scale), tile, tile)
        return zoom(seen, size)

    total = np.zeros(1)
    for scale in scales:
        scores = at_scale(image, scale)
        if flip:
            scores = 0.5 * (scores + at_scale(image[:, :, ::-1], scale)[:, :, ::-1])
        total = total + scores
    return total / len(scales)


def hrnet(
    ask: Ask,
    image: Array,
    scales: Sequence[float],
    flip: bool,
    *,
    tile: tuple[int, int],
    stride: tuple[int, int],
    border: str,
    whole_up_to: float,
    order: Sequence[int] | None = None,
    final: Callable[[Array], Array] = np.exp,
) -> Array:
    """HRNet's datasets: mirrored tile by tile, exponentiated, blended, enlarged, summed."""

    def look(picture: Array) -> Array:
        scores = zoom(ask(picture), picture.shape[1:])
        if flip:
            mirrored = zoom(ask(picture[:, :, ::-1]), picture.shape[1:])
            if order is not None:
                mirrored = mirrored[list(order)]
            scores = 0.5 * (scores + mirrored[:, :, ::-1])
        return final(scores)

    total = np.zeros(1)
    for scale in scales:
        seen = scaled(image, scale)
        if scale <= whole_up_to:
            scores = look(seen)
        else:
            scores = slide(look, seen, tile, stride, border)
        total = total + zoom(scores, image.shape[1:])
    return total


def softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(0))
    return powers / powers.sum(0)
