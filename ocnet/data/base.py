# SPDX-License-Identifier: MIT
"""What a data set of labelled pictures is, and the check that its labels are legal."""

from __future__ import annotations

import abc
import colorsys
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ocnet.data.inputs import PictureTransform
from ocnet.data.labels import IGNORE_INDEX, LabelMap

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Sample:
    """One picture and its labels.

    Attributes:
        image: what the network is given, ``(C, H, W)`` float32.
        label: class number of each pixel, or the ignore value, ``(H, W)`` int64.
        name: where the sample comes from, for messages and file names.
    """

    image: Tensor
    label: Tensor
    name: str


@dataclass(frozen=True)
class DatasetInfo:
    """What is known about a data set without any of its files.

    Attributes:
        class_names: one name per class, in the order of the class numbers.
        picture_transform: makes network input, as the data set has it, out of any RGB picture.
        palette: one colour per class, 0 to 255 each for red, green and blue.
        label_map: class of each value that label files have; by default they hold class numbers.
        mirror_pairs: classes that change places when a picture is mirrored, such as left and right arms.
    """

    class_names: tuple[str, ...]
    picture_transform: PictureTransform
    palette: tuple[RGB, ...]
    label_map: LabelMap = field(default=LabelMap({}))
    mirror_pairs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.label_map.classes:
            object.__setattr__(self, "label_map", LabelMap.identity(self.num_classes))

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are 0 to ``num_classes - 1``."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return self.picture_transform.channels


class SegmentationDataset(abc.ABC):
    """Indexable collection of :class:`Sample`.

    ``dataset[i]`` is the same every time. Random augmentation happens in :meth:`draw` only, with
    the randomness handed in, so that a training run can be repeated and resumed exactly.

    Args:
        info: classes, colours and normalisation.

    Attributes:
        info: as given; its parts are also attributes of the data set.
        ignore_index: label value of pixels without a class.
    """

    ignore_index: int = IGNORE_INDEX

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are 0 to ``num_classes - 1``."""
        return self.info.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class."""
        return self.info.class_names

    @property
    def palette(self) -> tuple[RGB, ...]:
        """One colour per class."""
        return self.info.palette

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return self.info.channels

    @property
    def labelled(self) -> bool:
        """Whether every sample has labels, so that it can be trained and scored on."""
        return True

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Return sample ``index``, without augmentation.

        Raises:
            IndexError: ``index`` is not in ``0 .. len - 1``.
            ValueError: a label is neither a class number nor the ignore value.
        """

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Return sample ``index`` as training wants it: augmented where the data set does that.

        Args:
            index: 0 to ``len - 1``.
            generator: the only source of randomness; equal generators give equal samples.

        Returns:
            A sample; all samples of one data set have one size here if training batches them.
        """
        return self[index]

    def pixel_groups(self, index: int) -> Mapping[str, Tensor]:
        """Return named groups of pixels of sample ``index`` that evaluation counts apart.

        Args:
            index: 0 to ``len - 1``.

        Returns:
            Name to boolean mask ``(H, W)``; empty where a data set has no such groups.
        """
        return {}

    def check(self, limit: int) -> None:
        """Load up to ``limit`` samples, evenly spread, so that bad labels show at once.

        Args:
            limit: at most this many samples are loaded.

        Raises:
            ValueError: a label is neither a class number nor the ignore value.
        """
        count = min(limit, len(self))
        for position in range(count):
            self[position * len(self) // count]


def check_labels(label: Tensor, num_classes: int, ignore_index: int, source: str) -> None:
    """Check that every pixel has a class number or the ignore value.

    A wrong value found here is a sentence; found by a loss on the GPU it is an aborted process.

    Args:
        label: any shape, integer dtype.
        num_classes: labels must be 0 to ``num_classes - 1``...
        ignore_index: ...or this value.
        source: file or sample name for the message.

    Raises:
        TypeError: ``label`` is not of an integer dtype.
        ValueError: other values occur; names them, their pixel count, and the source.
    """
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise TypeError(f"check_labels: label must have an integer dtype, got {label.dtype}")
    wrong = label[((label < 0) | (label >= num_classes)) & (label != ignore_index)]
    if wrong.numel() == 0:
        return
    values = torch.unique(wrong).tolist()
    shown = ", ".join(str(value) for value in values[:8]) + (", ..." if len(values) > 8 else "")
    raise ValueError(
        f"check_labels: label must hold only classes 0 to {num_classes - 1} and "
        f"{ignore_index} for ignored pixels, got {shown} ({wrong.numel()} pixels) in {source}"
    )


def check_index(index: int, length: int) -> None:
    """Check a sample number.

    Args:
        index: number to check.
        length: number of samples.

    Raises:
        IndexError: ``index`` is not in ``0 .. length - 1``.
    """
    if not 0 <= index < length:
        raise IndexError(f"dataset: index must be 0 to {length - 1}, got {index}")


# Seven colours of Okabe and Ito, told apart with every common form of colour blindness.
_OKABE_ITO: tuple[RGB, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (213, 94, 0),
    (204, 121, 167),
    (240, 228, 66),
    (0, 114, 178),
)


def distinct_colours(count: int) -> tuple[RGB, ...]:
    """Return ``count`` colours that are easy to tell apart.

    Args:
        count: how many, 0 or more.

    Returns:
        Red, green, blue of each, 0 to 255. After the first seven, which suit colour-blind readers
        too, hues step by the golden section, so that neighbours in the list are far apart.
    """
    colours = list(_OKABE_ITO[:count])
    golden = (5**0.5 - 1) / 2
    for number in range(len(_OKABE_ITO), count):
        brightness = 0.95 if number % 2 == 0 else 0.65
        red, green, blue = colorsys.hsv_to_rgb(number * golden % 1, 0.75, brightness)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colours)
