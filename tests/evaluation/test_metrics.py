# SPDX-License-Identifier: MIT
"""Scores against counts made pixel by pixel."""

import csv
import math
from pathlib import Path

import pytest
import torch
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassJaccardIndex,
)

from ocnet.evaluation import ConfusionMatrix, write_class_table


def slow_counts(prediction: torch.Tensor, label: torch.Tensor, classes: int) -> torch.Tensor:
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    for guess, truth in zip(prediction.flatten().tolist(), label.flatten().tolist(), strict=True):
        if truth != 255:
            counts[truth, guess] += 1
    return counts


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_counts_are_those_of_single_pixels(dtype: torch.dtype) -> None:
    # 20 classes: 19 * 20 + 19 does not fit uint8.
    label = torch.randint(0, 20, (3, 9, 7))
    label[0, :2] = 255
    prediction = torch.randint(0, 20, (3, 9, 7))
    matrix = ConfusionMatrix(20)
    matrix.update(prediction[:1].to(dtype), label[:1].to(dtype))
    matrix.update(prediction[1:].to(dtype), label[1:].to(dtype))
    assert torch.equal(matrix.counts, slow_counts(prediction, label, 20))


def test_scores_of_a_small_case() -> None:
    # Class 2 is predicted only, class 3 is absent altogether.
    matrix = ConfusionMatrix(4)
    matrix.update(torch.tensor([0, 0, 1, 1, 2, 0]), torch.tensor([0, 0, 0, 1, 1, 255]))
    iou = matrix.iou()
    assert iou.dtype == torch.float64
    assert iou[:3].tolist() == [2 / 3, 1 / 3, 0.0]
    assert math.isnan(float(iou[3]))
    assert matrix.mean_iou() == pytest.approx((2 / 3 + 1 / 3 + 0) / 3, rel=1e-15)
    assert matrix.pixel_accuracy() == 3 / 5


def test_scores_are_those_of_the_data_set_not_means_over_pictures() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([0]), torch.tensor([0]))
    matrix.update(torch.tensor([0, 0, 0]), torch.tensor([1, 1, 0]))
    assert matrix.iou().tolist() == [2 / 4, 0.0]


def test_absent_classes_are_skipped_or_count_nothing() -> None:
    # As above: IoU 2/3, 1/3, 0 and none.
    matrix = ConfusionMatrix(4)
    matrix.update(torch.tensor([0, 0, 1, 1, 2, 0]), torch.tensor([0, 0, 0, 1, 1, 255]))
    assert matrix.absent() == (3,)
    assert matrix.mean_iou("skip") == matrix.mean_iou()
    # OCNet: tp / max(1, union), the mean of all.
    assert matrix.mean_iou("zero") == pytest.approx((2 / 3 + 1 / 3 + 0 + 0) / 4, rel=1e-15)
    # Classes 2 and 3 have no pixels to be found.
    assert matrix.mean_accuracy() == pytest.approx((2 / 3 + 1 / 2) / 2, rel=1e-15)
    assert matrix.frequency_weighted_iou() == pytest.approx(
        (3 * (2 / 3) + 2 * (1 / 3)) / 5, rel=1e-15
    )
    with pytest.raises(ValueError, match="absent must be skip or zero, got 'nan'"):
        matrix.mean_iou("nan")  # type: ignore[arg-type]


@pytest.mark.parametrize("absent", [False, True])
def test_scores_are_those_of_torchmetrics(absent: bool) -> None:
    label = torch.randint(0, 6, (4, 20, 20))
    prediction = torch.where(torch.rand(label.shape) < 0.6, label, torch.randint(0, 6, label.shape))
    if absent:
        label[label == 4] = prediction[prediction == 4] = 0
    label[:, :3] = 255
    matrix = ConfusionMatrix(6)
    for guess, truth in zip(prediction, label, strict=True):
        matrix.update(guess, truth)

    theirs = MulticlassConfusionMatrix(6, ignore_index=255)
    assert torch.equal(theirs(prediction, label), matrix.counts)

    def score(kind: type, average: str) -> float:
        return float(kind(6, average=average, ignore_index=255)(prediction, label))

    # Theirs are single precision.
    close = {"rel": 8 * torch.finfo(torch.float32).eps}
    assert matrix.mean_iou() == pytest.approx(score(MulticlassJaccardIndex, "macro"), **close)
    assert matrix.frequency_weighted_iou() == pytest.approx(
        score(MulticlassJaccardIndex, "weighted"), **close
    )
    assert matrix.mean_accuracy() == pytest.approx(score(MulticlassAccuracy, "macro"), **close)
    assert matrix.pixel_accuracy() == pytest.approx(score(MulticlassAccuracy, "micro"), **close)
    each = MulticlassJaccardIndex(6, average=None, ignore_index=255)(prediction, label)
    assert matrix.mean_iou("zero") == pytest.approx(float(each.mean()), **close)
    assert (matrix.mean_iou("zero") == matrix.mean_iou()) is not absent


def test_matrices_add_up() -> None:
    label, prediction = torch.randint(0, 3, (2, 50)), torch.randint(0, 3, (2, 50))
    whole, first, second = (ConfusionMatrix(3) for _ in range(3))
    whole.update(prediction, label)
    first.update(prediction[0], label[0])
    second.update(prediction[1], label[1])
    first.merge(second)
    assert torch.equal(first.counts, whole.counts)
    for other in (ConfusionMatrix(4), ConfusionMatrix(3, ignore_index=0)):
        with pytest.raises(ValueError, match="other must have 3 classes and ignore 255, got"):
            first.merge(other)
    assert torch.equal(first.counts, whole.counts)


def test_nothing_counted_has_no_score() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([0, 1]), torch.tensor([255, 255]))
    assert math.isnan(matrix.mean_iou())
    assert math.isnan(matrix.pixel_accuracy())
    assert math.isnan(matrix.mean_accuracy())
    assert math.isnan(matrix.frequency_weighted_iou())
    assert matrix.absent() == (0, 1)


def test_per_class_table(tmp_path: Path) -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([0, 0, 1, 0]), torch.tensor([0, 0, 0, 1]))
    rows = matrix.per_class_table(["sky", "road", "car"])
    assert [row.name for row in rows] == ["sky", "road", "car"]
    assert [row.pixels for row in rows] == [3, 1, 0]
    assert (rows[0].iou, rows[0].accuracy, rows[0].precision) == (2 / 4, 2 / 3, 2 / 3)
    assert (rows[1].iou, rows[1].accuracy, rows[1].precision) == (0.0, 0.0, 0.0)
    assert all(math.isnan(value) for value in (rows[2].iou, rows[2].accuracy, rows[2].precision))

    write_class_table(tmp_path / "table.csv", rows)
    with (tmp_path / "table.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert read[0] == {
        "name": "sky",
        "iou": "0.500000",
        "accuracy": "0.666667",
        "precision": "0.666667",
        "pixels": "3",
    }
    assert read[2] == {"name": "car", "iou": "", "accuracy": "", "precision": "", "pixels": "0"}
    assert [row.absent for row in rows] == [False, False, True]
    assert matrix.absent() == (2,)


@pytest.mark.parametrize(
    ("prediction", "label", "complaint"),
    [
        ([0, 3], [0, 0], "prediction must be classes 0 to 2, got 3"),
        ([0, -1], [0, 0], "prediction must be classes 0 to 2, got -1"),
        ([0, 0], [0, 9], "label must be classes 0 to 2, got 9"),
        ([0, 0], [0, 0, 0], r"shape of label, \(3,\), got \(2,\)"),
    ],
)
def test_values_that_are_no_class_are_refused_before_counting(
    prediction: list[int], label: list[int], complaint: str
) -> None:
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=complaint):
        matrix.update(torch.tensor(prediction), torch.tensor(label))
    assert matrix.counts.sum() == 0


@pytest.mark.parametrize("wrong", ["prediction", "label"])
def test_fractions_are_refused(wrong: str) -> None:
    values = {"prediction": torch.zeros(2).long(), "label": torch.zeros(2).long()}
    values[wrong] = values[wrong].float()
    with pytest.raises(TypeError, match=f"{wrong} must have an integer dtype"):
        ConfusionMatrix(3).update(**values)


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        ConfusionMatrix(0)
    with pytest.raises(ValueError, match="names must have 2 entries, got 1"):
        ConfusionMatrix(2).per_class_table(["only"])
