# SPDX-License-Identifier: MIT
"""The label check and what every data set shares."""

import pytest
import torch

from ocnet.data import (
    DatasetInfo,
    Sample,
    SegmentationDataset,
    Standardise,
    check_labels,
    distinct_colours,
)


class Counting(SegmentationDataset):
    """Remembers which samples were asked for."""

    def __init__(self, length: int) -> None:
        super().__init__(DatasetInfo(("a", "b"), Standardise(1), distinct_colours(2)))
        self.length = length
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        self.asked.append(index)
        return Sample(torch.zeros(1, 2, 2), torch.zeros(2, 2, dtype=torch.int64), str(index))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.uint8])
def test_legal_labels_pass(dtype: torch.dtype) -> None:
    check_labels(torch.tensor([[0, 4], [255, 2]]).to(dtype), 5, 255, "here")


def test_wrong_labels_are_named_with_range_count_and_source() -> None:
    label = torch.tensor([[0, 7], [9, 7], [-1, 255]])
    with pytest.raises(
        ValueError, match=r"classes 0 to 4 and 255.*-1, 7, 9 \(4 pixels\) in x\.png"
    ):
        check_labels(label, 5, 255, "x.png")


def test_many_wrong_labels_are_cut_short() -> None:
    with pytest.raises(ValueError, match=r"got 5, 6, 7, 8, 9, 10, 11, 12, \.\.\. \(20 pixels\)"):
        check_labels(torch.arange(5, 25), 5, 255, "x")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_labels_of_another_type_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="integer dtype"):
        check_labels(torch.zeros(2, 2, dtype=dtype), 5, 255, "x")


@pytest.mark.parametrize(
    ("length", "limit", "asked"), [(10, 4, [0, 2, 5, 7]), (3, 64, [0, 1, 2]), (5, 0, [])]
)
def test_check_spreads_its_samples(length: int, limit: int, asked: list[int]) -> None:
    dataset = Counting(length)
    dataset.check(limit)
    assert dataset.asked == asked


def test_colours_differ() -> None:
    colours = distinct_colours(60)
    assert len(set(colours)) == 60
    assert all(0 <= part <= 255 for colour in colours for part in colour)
    assert distinct_colours(3) == colours[:3]


def test_parts_of_the_info_are_attributes() -> None:
    dataset = Counting(1)
    assert (dataset.num_classes, dataset.class_names, dataset.channels) == (2, ("a", "b"), 1)
    assert dataset.palette == distinct_colours(2)
    assert dataset.pixel_groups(0) == {}
