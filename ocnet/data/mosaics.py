# SPDX-License-Identifier: MIT
"""Look-up mosaics: real textures, exact labels, and regions that only far context can name."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocnet.data.base import (
    DatasetInfo,
    Sample,
    SegmentationDataset,
    check_index,
    distinct_colours,
)
from ocnet.data.inputs import Standardise, to_grey
from ocnet.data.photos import bundled_picture

Split = Literal["train", "val"]

TEXTURES = ("brick", "grass", "gravel", "immunohistochemistry", "hubble_deep_field")
"""The classes, by the name of their photograph in ``skimage.data``; all are CC0 or public domain."""

CLASSES_PER_IMAGE = 3
_LEVELS = (-2.0, 0.0, 2.0)
_REGIONS = (6, 9)  # fewest and most regions of an image
_CONTRAST = 0.7  # deviation of a texture; levels are 2 apart, so textures overlap the next level
_NOISE = 0.1
_PHOTO_SIDE = 512
_SPLIT_KEYS: Mapping[str, int] = {"train": 0, "val": 1}


@dataclass(frozen=True)
class _Layout:
    """How one mosaic is divided: class of each pixel, level of each pixel, and where it is flat."""

    classes: NDArray[np.int64]
    levels: NDArray[np.float32]
    flat: NDArray[np.bool_]


class LookupMosaics(SegmentationDataset):
    """Mosaics in which flat regions can be named only by looking elsewhere in the image.

    Each image draws three of five textures and gives each a grey level that holds for this image
    only. Six to nine Voronoi regions get one of the three classes. At least one region of each
    class shows its texture on top of the level; of the others a fraction ``flat_fraction`` is
    flat, level only. What class a flat region has must be looked up in a textured region of the
    same level, however far away: object context in the sense of OCNet, with exact labels.

    Training tiles come from the left halves of the photographs, validation tiles from the right.
    Sample ``i`` depends on nothing but ``seed``, ``split`` and ``i`` (and the sizes), so data sets
    of different length share their first samples.

    Args:
        split: ``"train"`` or ``"val"``.
        size: side of the square images, pixels, 32 to 256.
        length: number of samples, at least 1.
        seed: 0 or more.
        flat_fraction: share of the free regions that is flat, 0 to 1.

    Raises:
        ValueError: an argument is out of its range.
        RuntimeError: scikit-image, which ships the photographs, is not installed.

    Source: the task is ours; "object context" is Yuan et al., OCNet, section 3.1.
    """

    def __init__(
        self,
        split: Split = "train",
        size: int = 96,
        length: int = 4096,
        seed: int = 0,
        flat_fraction: float = 0.5,
    ) -> None:
        if split not in _SPLIT_KEYS:
            raise ValueError(f"LookupMosaics: split must be train or val, got {split}")
        if not 32 <= size <= _PHOTO_SIDE // 2:
            raise ValueError(f"LookupMosaics: size must be 32 to {_PHOTO_SIDE // 2}, got {size}")
        if length < 1:
            raise ValueError(f"LookupMosaics: length must be at least 1, got {length}")
        if seed < 0:
            raise ValueError(f"LookupMosaics: seed must be 0 or more, got {seed}")
        if not 0 <= flat_fraction <= 1:
            raise ValueError(f"LookupMosaics: flat_fraction must be 0 to 1, got {flat_fraction}")
        super().__init__(mosaics_info())
        self._textures = texture_halves(split)
        self.split = split
        self.size = size
        self.seed = seed
        self.flat_fraction = flat_fraction
        self._length = length

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._length

    def __getitem__(self, index: int) -> Sample:
        """Return sample ``index``.

        Args:
            index: 0 to ``len - 1``.

        Returns:
            Image ``(1, size, size)`` and label ``(size, size)``.

        Raises:
            IndexError: ``index`` is out of range.
        """
        layout, rng = self._layout(index)
        image = layout.levels + rng.normal(0, _NOISE, layout.levels.shape).astype(np.float32)
        for number, texture in enumerate(self._textures):
            top, left = (int(rng.integers(0, side - self.size + 1)) for side in texture.shape)
            tile = texture[top : top + self.size, left : left + self.size]
            shown = (layout.classes == number) & ~layout.flat
            image[shown] += _CONTRAST * tile[shown]
        return Sample(
            image=torch.from_numpy(image[None]),
            label=torch.from_numpy(layout.classes),
            name=f"mosaic-{self.split}-{self.seed}-{index}",
        )

    def flat_mask(self, index: int) -> Tensor:
        """Return which pixels of sample ``index`` have no texture.

        Args:
            index: 0 to ``len - 1``.

        Returns:
            ``(size, size)`` bool.

        Raises:
            IndexError: ``index`` is out of range.
        """
        return torch.from_numpy(self._layout(index)[0].flat)

    def pixel_groups(self, index: int) -> Mapping[str, Tensor]:
        """Return the flat and the textured pixels of sample ``index``, ``(size, size)`` bool each."""
        flat = self.flat_mask(index)
        return {"flat": flat, "textured": ~flat}

    def _layout(self, index: int) -> tuple[_Layout, np.random.Generator]:
        """Divide image ``index`` into regions; also return the generator for its pixels."""
        check_index(index, self._length)
        rng = np.random.default_rng([self.seed, _SPLIT_KEYS[self.split], index])
        chosen = rng.permutation(len(TEXTURES))[:CLASSES_PER_IMAGE]
        levels = rng.permutation(np.array(_LEVELS, dtype=np.float32))
        regions = int(rng.integers(_REGIONS[0], _REGIONS[1] + 1))
        centres = rng.random((regions, 2)) * self.size
        # The first regions are one textured region of each class, so every level can be looked up.
        slot = np.concatenate(
            [
                np.arange(CLASSES_PER_IMAGE),
                rng.integers(0, CLASSES_PER_IMAGE, regions - CLASSES_PER_IMAGE),
            ]
        )
        flat = rng.random(regions) < self.flat_fraction
        flat[:CLASSES_PER_IMAGE] = False

        axis = np.arange(self.size)
        row_distance = (axis[:, None] - centres[:, 0]) ** 2
        column_distance = (axis[:, None] - centres[:, 1]) ** 2
        region = (row_distance[:, None, :] + column_distance[None, :, :]).argmin(axis=-1)
        layout = _Layout(
            classes=chosen[slot][region].astype(np.int64),
            levels=levels[slot][region],
            flat=flat[region],
        )
        return layout, rng


def mosaics_info() -> DatasetInfo:
    """Return what is known about the mosaics without the photographs.

    Its picture transform makes a photograph look like a mosaic: grey, mean 0, and the standard
    deviation of the levels.
    """
    transform = Standardise(channels=1, deviation=float(np.std(_LEVELS)))
    return DatasetInfo(TEXTURES, transform, distinct_colours(len(TEXTURES)))


@functools.cache
def texture_halves(split: Split) -> tuple[NDArray[np.float32], ...]:
    """Return one half of each texture photograph, grey.

    Args:
        split: ``"train"`` for the left halves, ``"val"`` for the right halves.

    Returns:
        For each class ``(512, 256)`` float32, scaled so that the left half has mean 0 and
        deviation 1: validation uses numbers that training knew.

    Raises:
        RuntimeError: scikit-image is not installed.
    """
    halves = []
    for name in TEXTURES:
        picture = bundled_picture(name)[:_PHOTO_SIDE, :_PHOTO_SIDE].astype(np.float32)
        grey = picture if picture.ndim == 2 else to_grey(picture)
        left, right = np.hsplit(grey, 2)
        half = left if split == "train" else right
        scaled = (half - left.mean()) / left.std()
        scaled.setflags(write=False)  # shared by all data sets of the process
        halves.append(scaled)
    return tuple(halves)
