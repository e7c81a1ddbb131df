# SPDX-License-Identifier: MIT
"""Run a network over a data set and count."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ocnet.data import SegmentationDataset
from ocnet.evaluation.inference import predict_logits
from ocnet.evaluation.metrics import ConfusionMatrix


@dataclass
class GroupAccuracy:
    """How many pixels of a named group are right.

    Attributes:
        correct: pixels whose predicted class is the true one.
        total: pixels of the group that have a class.
    """

    correct: int = 0
    total: int = 0

    @property
    def accuracy(self) -> float:
        """Fraction of the group's pixels that is right; NaN for an empty group."""
        return self.correct / self.total if self.total else math.nan


@dataclass
class Evaluation:
    """What was counted over a data set.

    Attributes:
        confusion: pixels by true and predicted class.
        groups: accuracy on the pixel groups that the data set names, such as flat and textured.
    """

    confusion: ConfusionMatrix
    groups: dict[str, GroupAccuracy] = field(default_factory=dict)

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes present or predicted, 0 to 1."""
        return self.confusion.mean_iou()

    @property
    def pixel_accuracy(self) -> float:
        """Fraction of pixels that is right, 0 to 1."""
        return self.confusion.pixel_accuracy()

    def scores(self) -> dict[str, float]:
        """Return ``miou``, ``pixel_accuracy`` and one ``<group>_accuracy`` per group."""
        scores = {"miou": self.mean_iou, "pixel_accuracy": self.pixel_accuracy}
        for name, group in self.groups.items():
            scores[f"{name}_accuracy"] = group.accuracy
        return scores

    def add(self, prediction: Tensor, label: Tensor, groups: dict[str, Tensor]) -> None:
        """Count one picture.

        Args:
            prediction: predicted classes ``(H, W)``, int64.
            label: true classes or the ignore value, ``(H, W)``, int64.
            groups: name to boolean mask ``(H, W)``.
        """
        self.confusion.update(prediction, label)
        correct = prediction == label
        counted = label != self.confusion.ignore_index
        for name, mask in groups.items():
            group = self.groups.setdefault(name, GroupAccuracy())
            group.correct += int((correct & mask).sum())
            group.total += int((counted & mask).sum())


def evaluate(
    model: nn.Module,
    dataset: SegmentationDataset,
    *,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Compare a network's predictions with the labels of a data set.

    Logits are enlarged to the size of the label before the class is taken.

    Args:
        model: on ``device``; maps ``(N, C, H, W)`` to something whose ``main`` is logits.
        dataset: pictures, taken whole, in order.
        batch_size: pictures per call of the model, at least 1; neighbours of different size are
            never put into one batch.
        device: where the model is.
        on_batch: called with the number of pictures done after each batch.

    Returns:
        The counts.

    Raises:
        ValueError: ``batch_size`` is below 1, or a label or prediction is no class of the data set.
    """
    if batch_size < 1:
        raise ValueError(f"evaluate: batch_size must be at least 1, got {batch_size}")
    result = Evaluation(ConfusionMatrix(dataset.num_classes, dataset.ignore_index))
    done = 0
    for numbers, images, labels in _batches(dataset, batch_size):
        predictions = predict_logits(model, images.to(device)).argmax(1).cpu()
        for number, prediction, label in zip(numbers, predictions, labels, strict=True):
            result.add(prediction, label, dict(dataset.pixel_groups(number)))
        done += len(numbers)
        if on_batch is not None:
            on_batch(done)
    return result


def _batches(
    dataset: SegmentationDataset, batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield sample numbers, images and labels of runs of equal size, at most ``batch_size`` long."""
    numbers: list[int] = []
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for number in range(len(dataset)):
        sample = dataset[number]
        if images and (len(images) == batch_size or images[0].shape != sample.image.shape):
            yield numbers, torch.stack(images), torch.stack(labels)
            numbers, images, labels = [], [], []
        numbers.append(number)
        images.append(sample.image)
        labels.append(sample.label)
    if images:
        yield numbers, torch.stack(images), torch.stack(labels)
