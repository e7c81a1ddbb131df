# SPDX-License-Identifier: MIT
"""Scores against counts made pixel by pixel."""

import csv
import math
from pathlib import Path

import pytest
import torch

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


def test_nothing_counted_has_no_score() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([0, 1]), torch.tensor([255, 255]))
    assert math.isnan(matrix.mean_iou())
    assert math.isnan(matrix.pixel_accuracy())


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
    assert read[2]["iou"] == "nan"


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
