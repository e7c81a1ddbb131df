# SPDX-License-Identifier: MIT
"""What the check of a data set reports."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ocnet.data.labels import IGNORE_INDEX
from ocnet.data.suggestions import Suggestion

Size = tuple[int, int]
"""Width and height, pixels."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, or odd.

    Attributes:
        kind: which, such as ``unknown value``; equal for equal problems of other files.
        split: where.
        file: which file, or name of a sample; empty where it is about the split.
        sentence: what is wrong, for people.
    """

    kind: str
    split: str
    file: str
    sentence: str


@dataclass(frozen=True)
class ClassCount:
    """How often a class occurs in a split.

    Attributes:
        name: of the class.
        pixels: of all labels.
        share: of all pixels of all labels, 0 to 1.
        pictures: in how many it occurs.
    """

    name: str
    pixels: int
    share: float
    pictures: int


@dataclass(frozen=True)
class SplitReport:
    """What is in a split.

    Attributes:
        pictures: in the split.
        looked_at: how many of these were read.
        labelled: labels that could be read.
        smallest: size of the picture with fewest pixels; ``None`` where no picture could be read.
        largest: size of the picture with most pixels.
        most_common: size that most pictures have.
        classes: the classes, in the order of their numbers.
        ignored: pixels without a class.
        ignored_share: their share of all pixels of all labels, 0 to 1.
        values: pixels of each value of the label files, as it is in the files.
    """

    pictures: int
    looked_at: int
    labelled: int
    smallest: Size | None
    largest: Size | None
    most_common: Size | None
    classes: tuple[ClassCount, ...]
    ignored: int
    ignored_share: float
    values: Mapping[int, int]

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the classes without any pixel."""
        return tuple(each.name for each in self.classes if each.pixels == 0)


@dataclass(frozen=True)
class CheckReport:
    """What is in a data set, and what is wrong with it.

    Attributes:
        splits: what is in each split.
        problems: what training or scoring would refuse, or what would make scores worthless.
        warnings: what is odd, and may be right.
        suggestion: what the labels look like, where their values are not those that were expected.
    """

    splits: Mapping[str, SplitReport]
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    suggestion: Suggestion | None

    @property
    def ok(self) -> bool:
        """Whether there is no problem; warnings do not count."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {
            "ok": self.ok,
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "problems": [asdict(problem) for problem in self.problems],
            "warnings": [asdict(warning) for warning in self.warnings],
            "suggestion": None if self.suggestion is None else asdict(self.suggestion),
        }

    def write(self, path: Path) -> None:
        """Write all of it as JSON.

        Args:
            path: file to write.
        """
        path.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")

    def write_labels(self, path: Path) -> None:
        """Write the label histogram as CSV, one row for each class of each split.

        Args:
            path: file to write.
        """
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["split", "class", "name", "pixels", "share", "pictures"])
            for name, split in self.splits.items():
                for number, each in enumerate(split.classes):
                    share = f"{each.share:.6f}"
                    writer.writerow([name, number, each.name, each.pixels, share, each.pictures])
                share = f"{split.ignored_share:.6f}"
                writer.writerow([name, IGNORE_INDEX, "ignored", split.ignored, share, ""])
