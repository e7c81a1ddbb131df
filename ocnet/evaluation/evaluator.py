# SPDX-License-Identifier: MIT
"""Run a network over a data set and count."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ocnet.data import Sample, SegmentationDataset
from ocnet.evaluation.inference import Network
from ocnet.evaluation.metrics import ConfusionMatrix
from ocnet.evaluation.options import InferenceOptions
from ocnet.evaluation.predictor import Predictor


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

    def merge(self, other: Evaluation) -> None:
        """Add what was counted elsewhere, such as by another process on other pictures.

        Args:
            other: counts of the same classes.

        Raises:
            ValueError: the other has other classes or another ignore value. Nothing is added then.
        """
        self.confusion.merge(other.confusion)
        for name, group in other.groups.items():
            mine = self.groups.setdefault(name, GroupAccuracy())
            mine.correct += group.correct
            mine.total += group.total


def evaluate(
    model: Network,
    dataset: SegmentationDataset,
    *,
    options: InferenceOptions | None = None,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    indices: Iterable[int] | None = None,
    on_batch: Callable[[int], None] | None = None,
    on_picture: Callable[[int, str, Tensor, Tensor], None] | None = None,
) -> Evaluation:
    """Compare a network's predictions with the labels of a data set.

    Results are enlarged to the size of the label before the class is taken.

    Args:
        model: on ``device``; maps ``(N, C, H, W)`` to something whose ``main`` is logits.
        dataset: pictures, taken whole.
        options: how the network is asked about each picture; default: once, about the whole picture.
        batch_size: pictures per call of the model, at least 1; neighbours of different size are
            never put into one batch. Where ``options`` ask for more than one look, pictures go alone.
        device: where the model is.
        indices: which samples, in this order; default: all. Processes that share a data set take
            ``range(rank, len(dataset), ranks)`` each, and :meth:`Evaluation.merge` what they counted.
        on_batch: called with the number of pictures done after each batch.
        on_picture: called for each picture with its number in the data set, its name, and the predicted and
            the true classes ``(H, W)``, int64 on the host.

    Returns:
        The counts.

    Raises:
        ValueError: ``batch_size`` is below 1, the data set has no labels, the network has another number of
            classes than the data set, or a label is no class of it.
    """
    if batch_size < 1:
        raise ValueError(f"evaluate: batch_size must be at least 1, got {batch_size}")
    if not dataset.labelled:
        raise ValueError("evaluate: dataset must have labels, got pictures without them")
    predictor = Predictor(
        model,
        options,
        num_classes=dataset.num_classes,
        device=device,
        mirror_pairs=dataset.info.mirror_pairs,
    )
    result = Evaluation(ConfusionMatrix(dataset.num_classes, dataset.ignore_index))
    numbers = range(len(dataset)) if indices is None else indices
    done = 0
    for batch in _batches(dataset, numbers, batch_size if predictor.options.plain else 1):
        predictions = predictor.classes(torch.stack([sample.image for _, sample in batch]))
        for (number, sample), prediction in zip(batch, predictions, strict=True):
            result.add(prediction, sample.label, dict(dataset.pixel_groups(number)))
            if on_picture is not None:
                on_picture(number, sample.name, prediction, sample.label)
        done += len(batch)
        if on_batch is not None:
            on_batch(done)
    return result


def _batches(
    dataset: SegmentationDataset, numbers: Iterable[int], batch_size: int
) -> Iterator[list[tuple[int, Sample]]]:
    """Yield numbers and samples in runs of equal size, at most ``batch_size`` long."""
    batch: list[tuple[int, Sample]] = []
    for number in numbers:
        sample = dataset[number]
        if batch and (len(batch) == batch_size or batch[0][1].image.shape != sample.image.shape):
            yield batch
            batch = []
        batch.append((number, sample))
    if batch:
        yield batch
