# SPDX-License-Identifier: MIT
"""Your own pictures: a folder of images and a folder of label PNGs with the same names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ocnet.data.base import (
    DatasetInfo,
    Sample,
    SegmentationDataset,
    check_index,
    check_labels,
    distinct_colours,
)
from ocnet.data.pictures import read_picture
from ocnet.data.transforms import Augment, Normalise

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


class FolderPairs(SegmentationDataset):
    """Pictures in ``<root>/images`` and labels in ``<root>/labels``, paired by file stem.

    ``images/street_7.jpg`` belongs to ``labels/street_7.png``. A label is a PNG with one channel
    whose pixel values are class numbers (a palette PNG counts by its indices), 255 where the class
    is unknown.

    Args:
        root: folder that has ``images`` and ``labels``.
        class_names: one name per class, in the order of the class numbers.
        normalise: makes network input out of a picture; its number of channels is the data set's.
        crop: side of the square training crops, pixels.
        scale_range: smallest and largest factor by which training resizes pictures.
        flip: whether training mirrors half of the pictures.

    Raises:
        FileNotFoundError: ``root`` has no folder ``images`` or ``labels``, a picture has no
            label, or there is no picture at all.
        ValueError: two pictures have the same stem, or an option is out of its range.
    """

    def __init__(
        self,
        root: Path,
        class_names: Sequence[str],
        normalise: Normalise,
        *,
        crop: int = 512,
        scale_range: tuple[float, float] = (0.5, 2.0),
        flip: bool = True,
    ) -> None:
        names = tuple(class_names)
        super().__init__(DatasetInfo(names, normalise, distinct_colours(len(names))))
        self._augment = Augment(crop, scale_range, flip, normalise.fill, self.ignore_index)
        self._pairs = _find_pairs(root)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        """Return picture ``index``, whole.

        Args:
            index: 0 to ``len - 1``, in the order of the stems.

        Returns:
            Image ``(C, H, W)`` and label ``(H, W)``.

        Raises:
            IndexError: ``index`` is out of range.
            ValueError: the label has other values than classes and 255, more than one channel, or
                another size than the picture; names the file.
        """
        picture, label = self._read(index)
        return self._sample(picture, label, index)

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Return a random crop of picture ``index``, scaled and perhaps mirrored.

        Args:
            index: 0 to ``len - 1``.
            generator: the only source of randomness.

        Returns:
            Image ``(C, crop, crop)`` and label ``(crop, crop)``.

        Raises:
            IndexError: ``index`` is out of range.
            ValueError: as for ``dataset[index]``.
        """
        picture, label = self._augment(*self._read(index), generator)
        return self._sample(picture, label, index)

    def _read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Read picture and label; the label is checked whole, before any crop can hide a value."""
        check_index(index, len(self))
        picture_path, label_path = self._pairs[index]
        picture = read_picture(picture_path)
        label = _read_label(label_path)
        if label.shape != picture.shape[:2]:
            raise ValueError(
                f"FolderPairs: label must have the size of its picture, {picture.shape[1]} x "
                f"{picture.shape[0]}, got {label.shape[1]} x {label.shape[0]} in {label_path}"
            )
        check_labels(
            torch.from_numpy(label.astype(np.int64)),
            self.num_classes,
            self.ignore_index,
            str(label_path),
        )
        return picture, label

    def _sample(self, picture: NDArray[np.uint8], label: NDArray[Any], index: int) -> Sample:
        return Sample(
            image=self.info.picture_transform(picture),
            label=torch.from_numpy(label.astype(np.int64)),
            name=self._pairs[index][0].stem,
        )


def _read_label(path: Path) -> NDArray[Any]:
    """Read a one-channel label PNG as uint8 or uint16 ``(H, W)``."""
    try:
        with Image.open(path) as opened:
            mode = opened.mode
            label = np.array(opened)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"FolderPairs: label must be a PNG, got {path} ({error})") from error
    if mode == "1":
        return label.astype(np.uint8)
    if mode in ("L", "P"):
        return label
    if mode.startswith("I") and label.min() >= 0 and label.max() <= np.iinfo(np.uint16).max:
        return label.astype(np.uint16)
    raise ValueError(
        f"FolderPairs: label must be a PNG with one channel of class numbers, got mode {mode} "
        f"in {path}"
    )


def _find_pairs(root: Path) -> list[tuple[Path, Path]]:
    """List ``(picture, label)`` paths, sorted by stem."""
    for folder in ("images", "labels"):
        if not (root / folder).is_dir():
            raise FileNotFoundError(
                f"FolderPairs: root must have the folders images and labels, got {root} "
                f"without {folder}"
            )
    pictures: dict[str, Path] = {}
    for path in sorted((root / "images").iterdir()):
        if path.suffix.lower() not in _SUFFIXES:
            continue
        if path.stem in pictures:
            raise ValueError(
                f"FolderPairs: pictures must have different stems, got {pictures[path.stem].name} "
                f"and {path.name} in {root / 'images'}"
            )
        pictures[path.stem] = path
    if not pictures:
        raise FileNotFoundError(
            f"FolderPairs: root must have pictures, got none in {root / 'images'}"
        )
    pairs = []
    for stem in sorted(pictures):
        label_path = root / "labels" / f"{stem}.png"
        if not label_path.is_file():
            raise FileNotFoundError(
                f"FolderPairs: every picture must have a label, got none for "
                f"{pictures[stem].name}: {label_path} is missing"
            )
        pairs.append((pictures[stem], label_path))
    return pairs
