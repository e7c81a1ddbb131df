# SPDX-License-Identifier: MIT
"""What label files seem to hold when their values are not those that were expected."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ocnet.data.base import DatasetInfo
from ocnet.data.labels import IGNORE_INDEX, LabelMap
from ocnet.data.sets.cityscapes import CITYSCAPES

_LONGEST = 40  # entries of a map that a sentence shows in full


@dataclass(frozen=True)
class Suggestion:
    """What labels look like, and what to do about it.

    Attributes:
        sentence: for people.
        label_map: what ``data.label_map`` of a config should be; ``None`` where nobody can guess it.
    """

    sentence: str
    label_map: Mapping[int, int] | None = None

    def yaml(self) -> str:
        """Return the line for the section ``data`` of a config; empty without a map."""
        return "" if self.label_map is None else f"label_map: {_flow(self.label_map)}\n"


def suggest(values: Collection[int], info: DatasetInfo) -> Suggestion | None:
    """Guess what label files hold.

    The usual mistakes are looked for: Cityscapes' labelIds where class numbers are expected or the other way
    round, masks of 0 and 255, class numbers that start at 1, grey levels in the place of class numbers.

    Args:
        values: all values that label files of the data set have.
        info: its classes, and the label map that was expected.

    Returns:
        What they look like; ``None`` where nothing is odd, or where a data set with a label map of its own has
        values that fit nothing.
    """
    if dict(info.label_map.classes) == dict(LabelMap.identity(info.num_classes).classes):
        return _for_class_numbers(set(values), info.num_classes)
    return _for_a_map(set(values), info)


def _for_class_numbers(values: set[int], count: int) -> Suggestion | None:
    """Guess where class numbers were expected."""
    numbers = sorted(values - {IGNORE_INDEX})
    masks = count == 2 and values == {0, IGNORE_INDEX}
    if not masks and (not numbers or numbers[-1] < count):
        return None
    cityscapes = CITYSCAPES.label_map.classes
    if count == len(CITYSCAPES.class_names) and values <= cityscapes.keys():
        return _offer("Cityscapes' labelIds (or take data.name: cityscapes)", cityscapes)
    if numbers[-1] == count:
        one_based = {number + 1: number for number in range(count)}
        ignored = {0: IGNORE_INDEX, IGNORE_INDEX: IGNORE_INDEX}
        return _offer(
            "class numbers that start at 1, with 0 for no class", {**ignored, **one_based}
        )
    if len(numbers) == count:
        listed = LabelMap.listed(numbers).classes
        return _offer("grey levels, if the classes are in their order", listed)
    if len(values) == count:
        listed = LabelMap.listed(sorted(values), ignored=()).classes
        return _offer("masks of grey levels, the last one white", listed)
    return Suggestion(
        f"labels have {len(numbers)} values besides {IGNORE_INDEX} for {count} classes; say in data.label_map "
        f"which class each value is, and {IGNORE_INDEX} for those without a class"
    )


def _for_a_map(values: set[int], info: DatasetInfo) -> Suggestion | None:
    """Guess where a label map was expected: whether the files hold class numbers already."""
    numbers = values - {IGNORE_INDEX}
    above = [
        value
        for value, number in info.label_map.classes.items()
        if number != IGNORE_INDEX and value >= info.num_classes
    ]
    # Half of the classes: a map that only shifts numbers by one would be suspected of every small sample.
    if not numbers or max(numbers) >= info.num_classes or 2 * len(above) < info.num_classes:
        return None
    return Suggestion(
        f"labels look like class numbers already (no value from {info.num_classes} to {max(above)} occurs), "
        f"but are read as {info.label_map.allowed()}; take the label files of the data set, or data.name: "
        f"folder without data.label_map"
    )


def _offer(what: str, classes: Mapping[int, int]) -> Suggestion:
    ordered = dict(sorted(classes.items()))
    return Suggestion(
        f"labels look like {what}; put this under data: label_map: {_flow(ordered, shorten=True)}",
        ordered,
    )


def _flow(classes: Mapping[int, int], shorten: bool = False) -> str:
    """Write a map as YAML in one line."""
    parts = [f"{value}: {number}" for value, number in classes.items()]
    if shorten and len(parts) > _LONGEST:
        parts = [*parts[:3], "...", *parts[-3:]]
    return "{" + ", ".join(parts) + "}"
