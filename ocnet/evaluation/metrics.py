# SPDX-License-Identifier: MIT
"""Confusion matrix over a whole data set, and the numbers read from it."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassRow:
    """One line of the per-class table.

    Attributes:
        name: class name.
        iou: ``tp / (tp + fp + fn)``; NaN if the class is neither present nor predicted.
        accuracy: fraction of the class's pixels that were found; NaN if it has none.
        precision: fraction of the pixels called so that are; NaN if there are none.
        pixels: pixels of the class.
    """

    name: str
    iou: float
    accuracy: float
    precision: float
    pixels: int


class ConfusionMatrix:
    """Counts of (true class, predicted class) over any number of pictures.

    Scores are those of the data set as a whole, not means over pictures. Pixels with the ignore
    label are not counted.

    Args:
        num_classes: K, at least 1.
        ignore_index: label of the pixels that do not count.

    Raises:
        ValueError: ``num_classes`` is below 1.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if num_classes < 1:
            raise ValueError(f"ConfusionMatrix: num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        """``(K, K)`` int64 on the CPU: row is the true class, column the predicted one."""

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Count the pixels of one or more pictures.

        Args:
            prediction: predicted classes, integer dtype, any shape.
            label: true classes or the ignore value, integer dtype, same shape and device.

        Raises:
            TypeError: an argument has no integer dtype.
            ValueError: the shapes differ, or a value is no class. Nothing is counted then.
        """
        for name, values in (("prediction", prediction), ("label", label)):
            if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
                raise TypeError(
                    f"ConfusionMatrix.update: {name} must have an integer dtype, got {values.dtype}"
                )
        if prediction.shape != label.shape:
            raise ValueError(
                f"ConfusionMatrix.update: prediction must have the shape of label, "
                f"{tuple(label.shape)}, got {tuple(prediction.shape)}"
            )
        counted = label != self.ignore_index
        # 64 bits before the product below, which leaves uint8 at K = 16.
        truth = label[counted].long()
        guess = prediction[counted].long()
        self._check_classes("label", truth)
        self._check_classes("prediction", guess)
        size = self.num_classes
        pairs = torch.bincount(truth * size + guess, minlength=size * size)
        self.counts += pairs.view(size, size).cpu()

    def iou(self) -> Tensor:
        """Return intersection over union of each class.

        Returns:
            ``(K,)`` float64, ``tp / (tp + fp + fn)``; NaN for a class that is neither present nor
            predicted.
        """
        found = self.counts.diagonal().double()
        union = self.counts.sum(0) + self.counts.sum(1) - self.counts.diagonal()
        return found / union

    def mean_iou(self) -> float:
        """Return the mean IoU over the classes that have one; NaN if nothing was counted."""
        return float(self.iou().nanmean())

    def pixel_accuracy(self) -> float:
        """Return the fraction of counted pixels that is right; NaN if nothing was counted."""
        total = int(self.counts.sum())
        return int(self.counts.trace()) / total if total else math.nan

    def per_class_table(self, names: Sequence[str]) -> list[ClassRow]:
        """Return one row per class.

        Args:
            names: K class names.

        Returns:
            K rows in the order of the class numbers.

        Raises:
            ValueError: the number of names is not K.
        """
        if len(names) != self.num_classes:
            raise ValueError(
                f"per_class_table: names must have {self.num_classes} entries, got {len(names)}"
            )
        found = self.counts.diagonal().double()
        columns = zip(
            names,
            self.iou().tolist(),
            (found / self.counts.sum(1)).tolist(),
            (found / self.counts.sum(0)).tolist(),
            self.counts.sum(1).tolist(),
            strict=True,
        )
        return [ClassRow(*column) for column in columns]

    def _check_classes(self, name: str, classes: Tensor) -> None:
        if classes.numel() == 0:
            return
        least, largest = int(classes.min()), int(classes.max())
        if least < 0 or largest >= self.num_classes:
            raise ValueError(
                f"ConfusionMatrix.update: {name} must be classes 0 to {self.num_classes - 1}, "
                f"got {least if least < 0 else largest}"
            )


def write_class_table(path: Path, rows: Sequence[ClassRow]) -> None:
    """Write a per-class table as CSV.

    Args:
        path: file to write; columns are the fields of :class:`ClassRow`, scores with 6 digits.
        rows: lines of the table.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(ClassRow)])
        writer.writeheader()
        for row in rows:
            values = asdict(row).items()
            writer.writerow({k: f"{v:.6f}" if isinstance(v, float) else v for k, v in values})
