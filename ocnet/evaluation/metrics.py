# SPDX-License-Identifier: MIT
"""Confusion matrix over a whole data set, and the numbers read from it."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

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

    @property
    def absent(self) -> bool:
        """Whether the class is neither present nor predicted, so that nothing can be said about it."""
        return math.isnan(self.iou)


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

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix, such as those of another process.

        Args:
            other: a matrix of the same classes.

        Raises:
            ValueError: the other has other classes or another ignore value. Nothing is added then.
        """
        mine, theirs = (
            (self.num_classes, self.ignore_index),
            (other.num_classes, other.ignore_index),
        )
        if mine != theirs:
            raise ValueError(
                f"ConfusionMatrix.merge: other must have {mine[0]} classes and ignore {mine[1]}, "
                f"got {theirs[0]} and {theirs[1]}"
            )
        self.counts += other.counts

    def absent(self) -> tuple[int, ...]:
        """Return the classes that are neither present nor predicted."""
        return tuple(torch.nonzero(self.iou().isnan()).flatten().tolist())

    def iou(self) -> Tensor:
        """Return intersection over union of each class.

        Returns:
            ``(K,)`` float64, ``tp / (tp + fp + fn)``; NaN for a class that is neither present nor
            predicted.
        """
        found = self.counts.diagonal().double()
        union = self.counts.sum(0) + self.counts.sum(1) - self.counts.diagonal()
        return found / union

    def mean_iou(self, absent: Literal["skip", "zero"] = "skip") -> float:
        """Return the mean IoU over the classes.

        Args:
            absent: what a class counts that is neither present nor predicted. ``skip``: nothing, as in openseg.
                ``zero``: 0, as in OCNet and HRNet's repository, which is what their numbers mean.

        Returns:
            The mean, 0 to 1; NaN if nothing was counted and such classes are skipped.

        Raises:
            ValueError: ``absent`` is another word.

        Source: OCNet eval.py (``tp / max(1, union)``, mean over all classes); openseg lib/metrics
        (``nanmean``).
        """
        if absent not in ("skip", "zero"):
            raise ValueError(
                f"ConfusionMatrix.mean_iou: absent must be skip or zero, got {absent!r}"
            )
        iou = self.iou()
        return float(iou.nanmean() if absent == "skip" else iou.nan_to_num(0.0).mean())

    def mean_accuracy(self) -> float:
        """Return the mean of the classes' accuracies, over those that are present; NaN if none is."""
        return float((self.counts.diagonal().double() / self.counts.sum(1)).nanmean())

    def frequency_weighted_iou(self) -> float:
        """Return the IoU of the classes, weighted by their pixels; NaN if nothing was counted."""
        pixels = self.counts.sum(1).double()
        # A class that is absent weighs nothing, and has no IoU to weigh.
        return float((self.iou().nan_to_num(0.0) * pixels).sum() / pixels.sum())

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
        path: file to write; columns are the fields of :class:`ClassRow`, scores with 6 digits. A score that a
            class does not have is an empty cell; where the class is absent, all its scores are.
        rows: lines of the table.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(ClassRow)])
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value) for name, value in asdict(row).items()})


def _cell(value: str | int | float) -> str:
    if not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else f"{value:.6f}"
