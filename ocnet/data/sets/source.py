# SPDX-License-Identifier: MIT
"""What is known about a published data set, and how its files are found."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ocnet.data.base import RGB, DatasetInfo
from ocnet.data.files import Entry
from ocnet.data.inputs import PictureTransform
from ocnet.data.labels import LabelMap
from ocnet.data.sets.finding import first_file, make_entries

# OCNet calls its lists "train+.lst" and "train++.lst": a plus before the ending is part of a name.
_JOINT = re.compile(r"\+(?!\+*\.lst)")
_LIST = ".lst"


@dataclass(frozen=True)
class Source:
    """A published data set.

    Attributes:
        title: its name in messages.
        url: where it is had.
        class_names: one name per class.
        palette: one colour per class.
        label_map: class of each value that its label files have.
        splits: names of its splits. ``trainval`` among them stands for ``train+val``.
        list_files: finds the pictures of one split, not ``trainval``, under the root folder, in a fixed order.
        mirror_pairs: classes that change places when a picture is mirrored.
        label_map_at: reads the label map of the files under a root folder, where it depends on them.
    """

    title: str
    url: str
    class_names: tuple[str, ...]
    palette: tuple[RGB, ...]
    label_map: LabelMap
    splits: tuple[str, ...]
    list_files: Callable[[Path, str], list[Entry]]
    mirror_pairs: tuple[tuple[int, int], ...] = ()
    label_map_at: Callable[[Path], LabelMap] | None = None

    def info(self, transform: PictureTransform, root: Path | None = None) -> DatasetInfo:
        """Return what is known, with a normalisation.

        Args:
            transform: makes network input of pictures.
            root: folder of the data set, for the label map of the files that are there; without it no file is
                needed.

        Raises:
            FileNotFoundError: as for :meth:`label_map_of`.
            ValueError: as for :meth:`label_map_of`.
        """
        label_map = self.label_map if root is None else self.label_map_of(root)
        return DatasetInfo(self.class_names, transform, self.palette, label_map, self.mirror_pairs)

    def label_map_of(self, root: Path) -> LabelMap:
        """Return the class of each value of the label files under a root folder.

        Args:
            root: folder of the data set.

        Raises:
            FileNotFoundError: a file is missing that says what the values mean.
            ValueError: such a file cannot be read.
        """
        if self.label_map_at is None:
            return self.label_map
        with self._address():
            return self.label_map_at(root)

    def entries(self, root: Path, split: str) -> list[Entry]:
        """Return the pictures of a split, or of several joined by ``+``.

        Args:
            root: folder of the data set.
            split: such as ``train``, or ``train+val``. What ends in ``.lst`` is a text file, relative to
                ``root`` or to the working directory, whose lines are a picture and its label, or a picture
                alone, relative to ``root``.

        Raises:
            FileNotFoundError: a folder or file is missing; names it, and where the data set is had.
            ValueError: there is no such split, or it is empty, or a line of a list is wrong.
        """
        found: list[Entry] = []
        for part in _JOINT.split(split):
            if part not in self.splits and not part.endswith(_LIST):
                raise ValueError(
                    f"dataset: split of {self.title} must be made of {', '.join(self.splits)} and text "
                    f"files *{_LIST}, got {part!r}"
                )
            for name in ("train", "val") if part == "trainval" else (part,):
                found += self._pictures(root, name)
        return found

    def _pictures(self, root: Path, part: str) -> list[Entry]:
        with self._address():
            is_list = part.endswith(_LIST)
            pictures = _listed(root, part) if is_list else self.list_files(root, part)
        if not pictures:
            raise ValueError(
                f"dataset: split must have pictures, got none in {part} of {self.title} under {root}"
            )
        return pictures

    @contextlib.contextmanager
    def _address(self) -> Iterator[None]:
        """Say of missing files where the data set is had."""
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error} ({self.title} is had at {self.url})") from None


def _listed(root: Path, name: str) -> list[Entry]:
    """Read a list of pictures and labels, as the repositories of OCNet and HRNet have them."""
    listing = first_file(root / name, Path(name))
    pairs = []
    for number, line in enumerate(listing.read_text().splitlines(), start=1):
        words = line.split()
        if len(words) > 2:
            raise ValueError(
                f"dataset: lines must be a picture and a label, got {len(words)} words in line {number} "
                f"of {listing}"
            )
        if words:
            pairs.append((root / words[0], tuple(root / word for word in words[1:])))
    return make_entries(pairs)
