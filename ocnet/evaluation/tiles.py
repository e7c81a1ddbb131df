# SPDX-License-Identifier: MIT
"""Tiles of a picture, and where in the result what was seen in a tile belongs.

Blending and resizing are sums along rows and along columns, so each axis is planned for itself: what a tile
adds to the result is ``A @ tile @ B``, where ``A`` and ``B`` have at most two numbers in a row. Therefore
no map of the resized picture is needed, whatever its scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocnet.evaluation.options import Blend, InferenceOptions


@dataclass(frozen=True)
class Strip:
    """One tile along one axis.

    Attributes:
        start: first pixel of the tile in the picture that is cut.
        stop: first pixel after it; less than a tile away where the picture ends before.
        target: pixels of the result that the tile adds to.
        low: pixel of the tile at or before the place of each of them, int64.
        high: the one after it; None where pictures and result are of one size.
        low_weight: what is taken from ``low``, float64: the share of the tile times that of the pixel.
        high_weight: what is taken from ``high``.
    """

    start: int
    stop: int
    target: slice
    low: Tensor
    high: Tensor | None
    low_weight: Tensor
    high_weight: Tensor

    def spread(self, scores: Tensor, axis: int) -> Tensor:
        """Return what a tile adds to the result, along one axis of it.

        Args:
            scores: scores of the tile (without its padding), floating.
            axis: -2 for rows, -1 for columns.

        Returns:
            Scores of the pixels ``target``, weighted.
        """
        shape = (-1, 1) if axis == -2 else (-1,)

        def taken(index: Tensor, weight: Tensor) -> Tensor:
            return scores.index_select(axis, index.to(scores.device)) * weight.to(scores).view(
                shape
            )

        result = taken(self.low, self.low_weight)
        return result if self.high is None else result + taken(self.high, self.high_weight)


def starts(length: int, tile: int, stride: int, shift: bool) -> list[int]:
    """Return the first pixel of each tile along one axis.

    Args:
        length: pixels of the picture.
        tile: pixels of a tile.
        stride: pixels from one tile to the next, at most ``tile``.
        shift: whether the last tile moves back to end where the picture ends.

    Returns:
        ``ceil((length - tile) / stride) + 1`` places, or one where the picture is no longer than a tile.
    """
    count = max(0, -(-(length - tile) // stride)) + 1
    last = max(0, length - tile)
    return [min(i * stride, last) if shift else i * stride for i in range(count)]


def strips(length: int, result: int, tile: int, options: InferenceOptions) -> list[Strip]:
    """Cut one axis of a picture into tiles.

    Args:
        length: pixels of the picture that is cut.
        result: pixels of the result, which has the same corners.
        tile: pixels of a tile.
        options: their overlap, border and blend.

    Returns:
        The tiles in order. At each pixel of the result the weights of all of them sum up to 1.
    """
    # Rounding of 1 - overlap must not take a pixel from a stride that is a whole number.
    stride = max(1, int(tile * (1 - options.overlap) + 1e-6))
    places = starts(length, tile, stride, options.border == "shift")
    bell = _bell(tile, options.blend)
    total = np.zeros(length)
    for start in places:
        stop = min(start + tile, length)
        total[start:stop] += bell[: stop - start]
    return [
        _strip(start, bell[: length - start] / total[start : start + tile], length, result)
        for start in places
    ]


def _bell(tile: int, blend: Blend) -> NDArray[np.float64]:
    """Return the weight of each pixel of a tile before tiles are compared."""
    if blend == "count":
        return np.ones(tile)
    distance = (np.arange(tile) - (tile - 1) / 2) / (tile / 8)
    return np.exp(-(distance**2) / 2)


def _strip(start: int, share: NDArray[np.float64], length: int, result: int) -> Strip:
    """Plan one tile, given its share of each of its pixels."""
    stop = start + len(share)
    if length == result:
        low = np.arange(len(share))
        weights = torch.from_numpy(share)
        return Strip(start, stop, slice(start, stop), torch.from_numpy(low), None, weights, weights)
    places = np.arange(result) * ((length - 1) / (result - 1) if result > 1 else 0.0)
    touched = np.flatnonzero((places > start - 1) & (places < stop))
    below = np.floor(places[touched]).astype(np.int64)
    part = places[touched] - below

    def tap(pixel: NDArray[np.int64], weight: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        inside = (pixel >= start) & (pixel < stop)
        index = np.where(inside, pixel - start, 0)
        return torch.from_numpy(index), torch.from_numpy(
            np.where(inside, weight * share[index], 0.0)
        )

    (low_index, low_weight), (high_index, high_weight) = tap(below, 1 - part), tap(below + 1, part)
    first = int(touched[0]) if len(touched) else 0
    target = slice(first, first + len(touched))
    return Strip(start, stop, target, low_index, high_index, low_weight, high_weight)
