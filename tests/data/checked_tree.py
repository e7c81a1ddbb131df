# SPDX-License-Identifier: MIT
"""Two small splits in files that tests of the check overwrite."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ocnet.data import (
    DatasetInfo,
    Entry,
    LabelMap,
    Normalise,
    PictureFiles,
)
from ocnet.data.check_report import CheckReport

NORMALISE = Normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NAMES = ("sky", "road", "car")


def info(names: tuple[str, ...] = NAMES, label_map: LabelMap | None = None) -> DatasetInfo:
    palette = tuple((10 * number, 0, 0) for number in range(len(names)))
    return DatasetInfo(names, NORMALISE, palette, LabelMap({}) if label_map is None else label_map)


def label_array(height: int = 6, width: int = 8) -> np.ndarray:
    """All three classes, and one ignored pixel."""
    label = (np.arange(height * width) % 3).reshape(height, width).astype(np.uint8)
    label[0, 0] = 255
    return label


class Tree:
    """Pictures and labels in two splits, in files that tests overwrite."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._rng = np.random.default_rng(0)
        self.names: dict[str, list[str]] = {"train": [], "val": []}
        for split, count in (("train", 3), ("val", 2)):
            for number in range(count):
                self.add(split, f"{split}_{number}")

    def add(self, split: str, name: str, height: int = 6, width: int = 8) -> None:
        for kind in ("images", "labels"):
            (self.root / split / kind).mkdir(parents=True, exist_ok=True)
        pixels = self._rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self.image(split, name))
        Image.fromarray(label_array(height, width)).save(self.label(split, name))
        self.names[split].append(name)

    def image(self, split: str, name: str) -> Path:
        return self.root / split / "images" / f"{name}.png"

    def label(self, split: str, name: str) -> Path:
        return self.root / split / "labels" / f"{name}.png"

    def data(
        self, split: str, about: DatasetInfo | None = None, unlabelled: tuple[str, ...] = ()
    ) -> PictureFiles:
        entries = [
            Entry(
                self.image(split, name),
                None if name in unlabelled else self.label(split, name),
                name,
            )
            for name in self.names[split]
        ]
        return PictureFiles(entries, info() if about is None else about)

    def splits(self, about: DatasetInfo | None = None) -> dict[str, PictureFiles]:
        return {split: self.data(split, about) for split in self.names}

    def write_labels(self, change: Callable[[np.ndarray], np.ndarray]) -> None:
        for split, names in self.names.items():
            for name in names:
                Image.fromarray(change(label_array())).save(self.label(split, name))


def only(report: CheckReport) -> tuple[str, str, str, str]:
    """Return the one problem of a report."""
    (problem,) = report.problems
    assert not report.ok
    return problem.kind, problem.split, problem.file, problem.sentence
