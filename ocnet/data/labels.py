# SPDX-License-Identifier: MIT
"""From the values that label files hold to class numbers, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORE_INDEX = 255
"""Label of pixels that count neither in the loss nor in the metrics."""


@dataclass(frozen=True)
class LabelMap:
    """Which class each value of a label file stands for.

    Attributes:
        classes: file value to class number, or to ``IGNORE_INDEX``. Values that are not in it are errors:
            a value that nobody foresaw is a label file of another kind.
    """

    classes: Mapping[int, int]

    def __post_init__(self) -> None:
        for value, number in self.classes.items():
            if not 0 <= value <= np.iinfo(np.uint16).max:
                raise ValueError(f"LabelMap: values must be 0 to 65535, got {value}")
            if number < 0:
                raise ValueError(
                    f"LabelMap: classes must be 0 or more (or {IGNORE_INDEX}), got {number}"
                )

    @classmethod
    def identity(cls, num_classes: int) -> LabelMap:
        """Return the map of files that hold class numbers, and ``IGNORE_INDEX`` where there is none."""
        return cls(
            {**{number: number for number in range(num_classes)}, IGNORE_INDEX: IGNORE_INDEX}
        )

    @classmethod
    def listed(cls, values: Iterable[int], ignored: Iterable[int] = (IGNORE_INDEX,)) -> LabelMap:
        """Return the map that numbers ``values`` in their order, and ignores others.

        Args:
            values: file value of class 0, of class 1, and so on.
            ignored: file values of pixels without a class.
        """
        numbers = {value: number for number, value in enumerate(values)}
        return cls({**dict.fromkeys(ignored, IGNORE_INDEX), **numbers})

    def decode(self, raw: NDArray[Any], source: str) -> NDArray[Any]:
        """Return the class numbers of a label file.

        Args:
            raw: values of the file, an integer dtype, any shape.
            source: file name for the message.

        Returns:
            Class numbers and ``IGNORE_INDEX``, of the same shape; uint8, or uint16 where a class number does
            not fit.

        Raises:
            ValueError: a value is not in the map; names them, their pixel count, what is allowed, and the
                file.
        """
        unknown = self.unknown(raw)
        if unknown:
            shown = ", ".join(map(str, sorted(unknown)[:8])) + (", ..." if len(unknown) > 8 else "")
            raise ValueError(
                f"dataset: label must hold only the values {self.allowed()}, got {shown} "
                f"({sum(unknown.values())} pixels) in {source}"
            )
        deep = any(number > np.iinfo(np.uint8).max for number in self.classes.values())
        table = np.zeros(max(self.classes) + 1, dtype=np.uint16 if deep else np.uint8)
        for value, number in self.classes.items():
            table[value] = number
        decoded: NDArray[Any] = table[raw]
        return decoded

    def unknown(self, raw: NDArray[Any]) -> dict[int, int]:
        """Return the values of a label file that the map does not have, with their pixel counts."""
        if raw.size and int(raw.min()) < 0:
            values, counts = np.unique(raw, return_counts=True)
            found = dict(zip(values.tolist(), counts.tolist(), strict=True))
        else:
            histogram = np.bincount(raw.ravel())
            found = {int(value): int(histogram[value]) for value in np.flatnonzero(histogram)}
        return {value: count for value, count in found.items() if value not in self.classes}

    def encode(self, classes: NDArray[Any]) -> NDArray[Any]:
        """Return what a label file has for class numbers: the way back, for submissions.

        Args:
            classes: class numbers, an integer dtype, any shape.

        Returns:
            File values, uint8 or uint16, of the same shape. Where several values stand for one class, the
            smallest.

        Raises:
            ValueError: a number is no class of the map.
        """
        values: dict[int, int] = {}
        for value in sorted(self.classes, reverse=True):
            if self.classes[value] != IGNORE_INDEX:
                values[self.classes[value]] = value
        wrong = sorted(set(np.unique(classes).tolist()) - values.keys())
        if wrong:
            raise ValueError(
                f"LabelMap.encode: classes must be in {_ranges(values)}, got {wrong[0]}"
            )
        deep = any(value > np.iinfo(np.uint8).max for value in values.values())
        table = np.zeros(max(values) + 1, dtype=np.uint16 if deep else np.uint8)
        for number, value in values.items():
            table[number] = value
        encoded: NDArray[Any] = table[classes]
        return encoded

    def allowed(self) -> str:
        """Return the values of the map in words, such as ``0 to 33 and 255``."""
        return _ranges(self.classes)


def _ranges(values: Iterable[int]) -> str:
    """Write numbers as ranges: ``0 to 33 and 255``; a range has at least three."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    texts: list[str] = []
    for run in runs:
        texts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run)
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
