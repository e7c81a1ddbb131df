# SPDX-License-Identifier: MIT
"""Whole-image prediction and the loop that counts."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ocnet.data import (
    DatasetInfo,
    Sample,
    SegmentationDataset,
    Standardise,
    distinct_colours,
)
from ocnet.evaluation import (
    Evaluation,
    GroupAccuracy,
    InferenceOptions,
    classify_picture,
    evaluate,
    predict_logits,
)


class Result(NamedTuple):
    main: Tensor


class Corners(nn.Module):
    """Logits of 2 x 2: class 0 grows to the right, class 1 is one half everywhere."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.seen: list[tuple[int, ...]] = []
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Result:
        self.seen.append(tuple(images.shape))
        self.modes.append(self.training)
        ramp = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=self.dtype)
        logits = torch.stack([ramp, torch.full_like(ramp, 0.5)])
        return Result(logits.expand(len(images), 2, 2, 2))


class Sign(nn.Module):
    """Class 1 where the image is positive; sees single pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Result:
        self.sizes.append(len(images))
        return Result(torch.cat([-images, images], dim=1))


class Shapes(SegmentationDataset):
    """Random images of given sizes; the label is the sign but in the left column."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        super().__init__(DatasetInfo(("no", "yes"), Standardise(1), distinct_colours(2)))
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(1, *self.sizes[index], generator=generator)
        label = (image[0] > 0).long()
        label[:, 0] = 1 - label[:, 0]
        label[0, 1] = 255
        return Sample(image, label, str(index))

    def pixel_groups(self, index: int) -> Mapping[str, Tensor]:
        left = torch.zeros(self.sizes[index], dtype=torch.bool)
        left[:, 0] = True
        return {"left": left, "rest": ~left}


@pytest.mark.parametrize("size", [(5, 9), (1, 3), (4, 4)])
def test_logits_are_enlarged_with_aligned_corners(size: tuple[int, int]) -> None:
    logits = predict_logits(Corners(), torch.zeros(3, *size))
    assert logits.shape == (2, *size)
    expected = torch.linspace(0, 1, size[1], dtype=torch.float64).expand(size)
    # One multiplication and one addition of numbers up to 1.
    assert (logits[0].double() - expected).abs().max() <= 4 * torch.finfo(torch.float32).eps
    assert (logits[1] - 0.5).abs().max() <= 4 * torch.finfo(torch.float32).eps


def test_logits_of_a_batch_and_of_another_size() -> None:
    assert predict_logits(Corners(), torch.zeros(3, 1, 4, 6)).shape == (3, 2, 4, 6)
    assert predict_logits(Corners(), torch.zeros(1, 4, 6), size=(7, 8)).shape == (2, 7, 8)


def test_16_bit_logits_come_out_in_fp32() -> None:
    assert predict_logits(Corners(torch.bfloat16), torch.zeros(1, 4, 4)).dtype == torch.float32
    assert predict_logits(Corners(torch.float64), torch.zeros(1, 4, 4)).dtype == torch.float64


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_used_in_evaluation_mode_and_left_as_it_was(training: bool) -> None:
    model = Corners().train(training)
    predict_logits(model, torch.zeros(1, 4, 4))
    assert model.modes == [False]
    assert model.training is training


def test_no_graph_is_built() -> None:
    conv = nn.Conv2d(1, 2, 1)

    class Wrapped(nn.Module):
        def forward(self, images: Tensor) -> Result:
            return Result(conv(images))

    assert not predict_logits(Wrapped(), torch.zeros(1, 4, 4)).requires_grad


@pytest.mark.parametrize("shape", [(4, 4), (1, 1, 1, 4, 4)])
def test_images_of_another_rank_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="image must be"):
        predict_logits(Corners(), torch.zeros(shape))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_evaluate_counts_every_pixel_once(batch_size: int) -> None:
    sizes = [(3, 4), (3, 4), (3, 4), (5, 2), (5, 2)]
    model = Sign()
    done: list[int] = []
    result = evaluate(model, Shapes(sizes), batch_size=batch_size, on_batch=done.append)
    assert model.sizes == {1: [1] * 5, 2: [2, 1, 2], 5: [3, 2]}[batch_size]
    assert done == np.cumsum(model.sizes).tolist()

    left = sum(height for height, _ in sizes)
    total = sum(height * width for height, width in sizes) - len(sizes)  # one ignored in each
    assert int(result.confusion.counts.sum()) == total
    assert int(result.confusion.counts.trace()) == total - left
    assert (result.groups["left"].correct, result.groups["left"].total) == (0, left)
    assert result.groups["rest"].accuracy == 1.0
    assert result.scores() == {
        "miou": result.mean_iou,
        "pixel_accuracy": (total - left) / total,
        "left_accuracy": 0.0,
        "rest_accuracy": 1.0,
    }


SIZES = [(3, 4), (3, 4), (5, 2), (6, 6), (3, 4)]


def same(one: Evaluation, other: Evaluation) -> bool:
    return torch.equal(one.confusion.counts, other.confusion.counts) and one.groups == other.groups


def test_processes_take_samples_and_add_up() -> None:
    whole = evaluate(Sign(), Shapes(SIZES), batch_size=2)
    parts = [
        evaluate(Sign(), Shapes(SIZES), batch_size=2, indices=range(rank, 5, 2))
        for rank in range(2)
    ]
    assert not same(parts[0], whole)
    parts[0].merge(parts[1])
    assert same(parts[0], whole)
    nothing = evaluate(Sign(), Shapes(SIZES), indices=[])
    assert int(nothing.confusion.counts.sum()) == 0
    nothing.merge(whole)
    assert same(nothing, whole)


@pytest.mark.parametrize("options", [None, InferenceOptions("slide", (2, 3), flip=True)])
def test_every_picture_is_handed_on(options: InferenceOptions | None) -> None:
    dataset, seen = Shapes(SIZES), []
    done: list[int] = []
    evaluate(
        Sign(),
        dataset,
        options=options,
        batch_size=2,
        indices=[4, 1, 3],
        on_batch=done.append,
        on_picture=lambda *picture: seen.append(picture),
    )
    assert [(number, name) for number, name, _, _ in seen] == [(4, "4"), (1, "1"), (3, "3")]
    for number, _, prediction, label in seen:
        assert torch.equal(label, dataset[number].label)
        assert torch.equal(prediction, (dataset[number].image[0] > 0).long())
    assert done == ([2, 3] if options is None else [1, 2, 3])


@pytest.mark.parametrize(
    "options",
    [
        InferenceOptions("slide", (2, 3), 0.5, "pad", "gaussian", tile_batch=3),
        InferenceOptions(flip=True, merge="exp_logits"),
        InferenceOptions("ocnet", (2, 2), pad_multiple=4, merge="sum_logits"),
    ],
)
def test_options_reach_the_network(options: InferenceOptions) -> None:
    # It sees single pixels, so all of them must find the same classes.
    model = Sign()
    assert same(
        evaluate(model, Shapes(SIZES), options=options, batch_size=2),
        evaluate(Sign(), Shapes(SIZES)),
    )
    assert max(model.sizes) == options.tile_batch


def test_classes_of_the_data_set_change_places_in_the_mirror() -> None:
    class Sides(nn.Module):
        """Class 0 in the left half of what it sees, class 1 in the right half."""

        def forward(self, images: Tensor) -> Result:
            columns = torch.linspace(1, -1, images.shape[3]).expand(len(images), *images.shape[2:])
            return Result(torch.stack([columns, -columns], 1))

    class Halves(Shapes):
        def __init__(self) -> None:
            super().__init__([(2, 4)])
            self.info = replace(self.info, mirror_pairs=((0, 1),))

        def __getitem__(self, index: int) -> Sample:
            label = torch.tensor([0, 0, 1, 1]).expand(2, 4)
            return Sample(torch.zeros(1, 2, 4), label, "halves")

    result = evaluate(Sides(), Halves(), options=InferenceOptions(flip=True))
    assert result.pixel_accuracy == 1.0


def test_pictures_without_labels_are_refused() -> None:
    class Secret(Shapes):
        labelled = False

    dataset = Secret(SIZES)
    with pytest.raises(ValueError, match="evaluate: dataset must have labels, got pictures"):
        evaluate(Sign(), dataset)


def test_a_group_without_pixels_has_no_accuracy() -> None:
    assert math.isnan(GroupAccuracy().accuracy)


def test_evaluate_refuses_a_batch_of_none() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        evaluate(Sign(), Shapes([(3, 4)]), batch_size=0)


def test_pictures_are_reduced_for_the_model_only() -> None:
    model = Corners()
    picture = np.zeros((10, 40, 3), dtype=np.uint8)
    classes = classify_picture(model, Standardise(1), picture, max_side=20)
    assert model.seen == [(1, 1, 5, 20)]
    assert classes.shape == (10, 40)
    # Class 0 wins where the ramp is above one half.
    np.testing.assert_array_equal(classes, np.broadcast_to(np.arange(40) < 20, (10, 40)))
    classify_picture(model, Standardise(1), picture, max_side=40)
    classify_picture(model, Standardise(1), picture)
    assert model.seen[1:] == [(1, 1, 10, 40)] * 2


def test_pictures_cannot_be_reduced_to_nothing() -> None:
    with pytest.raises(ValueError, match="max_side must be at least 1, got 0"):
        classify_picture(Corners(), Standardise(1), np.zeros((4, 4, 3), np.uint8), max_side=0)
