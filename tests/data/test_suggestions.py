# SPDX-License-Identifier: MIT
"""What labels with unknown values look like, and the map that is offered."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from ocnet.data import (
    LabelMap,
)
from ocnet.data.checking import examine
from ocnet.data.sets.cityscapes import CITYSCAPES
from ocnet.data.suggestions import Suggestion, suggest
from tests.data.checked_tree import NAMES, NORMALISE, Tree, info, label_array, only


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


ONE_BASED = {0: 255, 1: 0, 2: 1, 3: 2, 255: 255}


@pytest.mark.parametrize(
    ("values", "count", "expected"),
    [
        ({1, 2, 3}, 3, ONE_BASED),
        ({0, 1, 2, 3, 255}, 3, ONE_BASED),
        ({0, 255}, 2, {0: 0, 255: 1}),
        ({0, 128, 255}, 3, {0: 0, 128: 1, 255: 2}),
        ({5, 9, 255}, 2, {5: 0, 9: 1, 255: 255}),
        ({0, 257, 514}, 3, {0: 0, 257: 1, 514: 2, 255: 255}),
        ({7, 11, 23, 26, 255}, 19, dict(CITYSCAPES.label_map.classes)),
        ({0, 1, 34}, 19, None),
        ({0, 1, 5, 6}, 3, None),
    ],
)
def test_a_map_is_offered(values: set[int], count: int, expected: Mapping[int, int] | None) -> None:
    found = suggest(values, info(tuple("abcdefghijklmnopqrs"[:count])))
    assert found is not None
    assert found.label_map == expected


@pytest.mark.parametrize(
    ("values", "count"), [({0, 1, 2, 255}, 3), ({0, 1}, 2), ({1, 255}, 2), ({0}, 2), ({255}, 2)]
)
def test_nothing_is_offered_where_nothing_is_odd(values: set[int], count: int) -> None:
    assert suggest(values, info(NAMES[:count])) is None


def test_an_offered_map_makes_the_labels_right(tree: Tree) -> None:
    tree.write_labels(lambda label: np.where(label == 255, 0, label + 1).astype(np.uint8))
    report = examine(tree.splits())
    assert [each.kind for each in report.problems] == ["unknown value"] * 5
    assert report.suggestion == Suggestion(
        "labels look like class numbers that start at 1, with 0 for no class; put this under data: "
        "label_map: {0: 255, 1: 0, 2: 1, 3: 2, 255: 255}",
        ONE_BASED,
    )
    assert report.suggestion.yaml() == "label_map: {0: 255, 1: 0, 2: 1, 3: 2, 255: 255}\n"
    again = examine(tree.splits(info(label_map=LabelMap(ONE_BASED))))
    assert again.ok
    label = label_array()
    assert [each.pixels for each in again.splits["val"].classes] == [
        2 * np.sum(label == number) for number in range(3)
    ]


def test_masks_of_0_and_255_are_a_problem_though_both_values_are_allowed(tree: Tree) -> None:
    tree.write_labels(lambda label: np.where(label == 1, 255, 0).astype(np.uint8))
    report = examine(tree.splits(info(NAMES[:2])))
    assert only(report)[3] == (
        "dataset: labels look like masks of grey levels, the last one white; put this under data: "
        "label_map: {0: 0, 255: 1}"
    )


def test_class_numbers_under_the_map_of_label_ids_are_odd(tree: Tree) -> None:
    tree.write_labels(lambda label: np.where(label == 255, 255, 3 * label + 12).astype(np.uint8))
    report = examine(tree.splits(CITYSCAPES.info(NORMALISE)))
    assert report.ok
    assert report.warnings[-1].kind == "suspicious labels"
    assert report.warnings[-1].sentence.startswith(
        "dataset: labels look like class numbers already (no value from 19 to 33 occurs)"
    )
    tree.write_labels(lambda label: np.full_like(label, 26))
    assert examine(tree.splits(CITYSCAPES.info(NORMALISE))).suggestion is None


def test_long_maps_are_shortened_for_people_only() -> None:
    found = suggest(set(range(1, 151)), info(tuple(str(number) for number in range(150))))
    assert found is not None
    assert "{0: 255, 1: 0, 2: 1, ..., 149: 148, 150: 149, 255: 255}" in found.sentence
    assert found.yaml().count(":") == 153
