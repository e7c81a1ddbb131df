# SPDX-License-Identifier: MIT
"""Data sets that are picture files with label files beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocnet.data.base import DatasetInfo, Sample, SegmentationDataset, check_index
from ocnet.data.pictures import read_label, read_picture


@dataclass(frozen=True)
class Entry:
    """One picture of a data set.

    Attributes:
        picture: its file.
        label: the file of its labels; ``None`` where they are kept secret, as those of test sets.
        name: what predictions of it are called, without an ending; no two of a data set agree.
    """

    picture: Path
    label: Path | None
    name: str


class Augmentation(Protocol):
    """Draws a training sample out of a picture and its class numbers."""

    def __call__(
        self, picture: NDArray[np.uint8], label: NDArray[Any], generator: torch.Generator
    ) -> tuple[Tensor, NDArray[Any]]:
        """Draw one sample.

        Args:
            picture: ``(H, W, 3)`` uint8, red, green, blue.
            label: ``(H, W)`` class numbers or the ignore value, uint8 or uint16.
            generator: the only source of randomness.

        Returns:
            Network input ``(C, h, w)`` float32, and labels ``(h, w)``; ``h`` and ``w`` are the same for all
            pictures.
        """


class PictureFiles(SegmentationDataset):
    """Pictures and labels in files.

    Nothing is read before it is asked for, but the names of the files.

    Args:
        entries: the pictures, in their order.
        info: classes, label values, colours and normalisation.
        augmentation: makes training samples; without it they are the whole pictures.

    Raises:
        ValueError: there is no picture, or two have one name.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        info: DatasetInfo,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(info)
        if not entries:
            raise ValueError("dataset: entries must have at least one picture, got none")
        seen: dict[str, Entry] = {}
        for entry in entries:
            if entry.name in seen:
                raise ValueError(
                    f"dataset: pictures must have different names, got {entry.name} for "
                    f"{seen[entry.name].picture} and {entry.picture}"
                )
            seen[entry.name] = entry
        self.entries = tuple(entries)
        self._augmentation = augmentation

    @property
    def labelled(self) -> bool:
        """Whether every picture has a label file."""
        return all(entry.label is not None for entry in self.entries)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        """Return picture ``index``, whole.

        Args:
            index: 0 to ``len - 1``.

        Returns:
            Image ``(C, H, W)`` and label ``(H, W)``.

        Raises:
            IndexError: ``index`` is out of range.
            ValueError: a file cannot be read, the label has values that it should not have or another
                size than the picture, or there is no label; names the file.
        """
        picture, label = self.pair(index)
        return self._sample(self.info.picture_transform(picture), label, index)

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Return picture ``index`` augmented.

        Args:
            index: 0 to ``len - 1``.
            generator: the only source of randomness.

        Returns:
            Image ``(C, h, w)`` and label ``(h, w)``.

        Raises:
            IndexError: ``index`` is out of range.
            ValueError: as for ``dataset[index]``.
        """
        if self._augmentation is None:
            return self[index]
        # The label is checked whole, before any crop can hide a value.
        image, label = self._augmentation(*self.pair(index), generator)
        return self._sample(image, label, index)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """Return picture ``index`` as it is in its file, ``(H, W, 3)`` uint8."""
        check_index(index, len(self))
        return read_picture(self.entries[index].picture)

    def raw_label(self, index: int) -> NDArray[Any]:
        """Return the values of the label file of picture ``index``, ``(H, W)``.

        Raises:
            IndexError: ``index`` is out of range.
            ValueError: the file cannot be read, or there is none.
        """
        check_index(index, len(self))
        entry = self.entries[index]
        if entry.label is None:
            raise ValueError(
                f"dataset: picture must have a label to be trained or scored on, got {entry.picture} "
                f"of a split without labels"
            )
        return read_label(entry.label)

    def pair(self, index: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Return picture ``index`` and its class numbers, ``(H, W, 3)`` and ``(H, W)``.

        Raises:
            IndexError: ``index`` is out of range.
            ValueError: as for ``dataset[index]``.
        """
        picture, raw = self.picture(index), self.raw_label(index)
        path = str(self.entries[index].label)
        check_size(raw, picture.shape[:2], path)
        return picture, self.info.label_map.decode(raw, path)

    def _sample(self, image: Tensor, label: NDArray[Any], index: int) -> Sample:
        return Sample(image, torch.from_numpy(label.astype(np.int64)), self.entries[index].name)


def check_size(raw: NDArray[Any], size: tuple[int, ...], source: str) -> None:
    """Check that a label belongs to its picture.

    Args:
        raw: values of the label file, ``(H, W)``.
        size: rows and columns of the picture.
        source: file name for the message.

    Raises:
        ValueError: the sizes differ.
    """
    if raw.shape != size:
        raise ValueError(
            f"dataset: label must have the size of its picture, {size[1]} x {size[0]}, got "
            f"{raw.shape[1]} x {raw.shape[0]} in {source}"
        )
