# SPDX-License-Identifier: MIT
"""Finding the files of a data set, with a sentence for each that is not there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from ocnet.data.files import Entry


def first_folder(*candidates: Path) -> Path:
    """Return the first candidate that is a folder.

    Args:
        candidates: where the folder may be; at least one.

    Raises:
        FileNotFoundError: none is a folder; names them all.
    """
    return _first(candidates, Path.is_dir, "folder")


def first_file(*candidates: Path) -> Path:
    """Return the first candidate that is a file.

    Args:
        candidates: where the file may be; at least one.

    Raises:
        FileNotFoundError: none is a file; names them all.
    """
    return _first(candidates, Path.is_file, "file")


def _first(candidates: tuple[Path, ...], there: Callable[[Path], bool], kind: str) -> Path:
    for path in candidates:
        if there(path):
            return path
    places = " or ".join(dict.fromkeys(map(str, candidates)))
    raise FileNotFoundError(f"dataset: {kind} must exist, got none at {places}")


def pictures(where: Path, ending: str) -> list[Path]:
    """Return the files of a folder that end so, in the order of their names.

    Args:
        where: an existing folder.
        ending: end of the file names. Names that begin with a dot are left out: archives made on macOS hold
            such a twin of each picture.
    """
    return sorted(
        path for path in where.iterdir() if path.name.endswith(ending) and path.name[0] != "."
    )


def ids(listing: Path) -> list[str]:
    """Return the first word of each line of a text file, sorted; empty lines are left out."""
    return sorted(line.split()[0] for line in listing.read_text().splitlines() if line.strip())


def make_entries(pairs: Iterable[tuple[Path, tuple[Path, ...]]], remark: str = "") -> list[Entry]:
    """Make entries of pictures and labels, and see that their files are there.

    Args:
        pairs: each picture with the files that may be its label, best first; none where labels are kept
            secret. Entries are named after the stems of the pictures.
        remark: what to add to the complaint that a label is missing.

    Raises:
        FileNotFoundError: a picture is missing, or its label; names both.
    """
    there = _existence()
    found = []
    for picture, labels in pairs:
        if not there(picture):
            raise FileNotFoundError(
                f"dataset: every picture listed must exist, got none at {picture}"
            )
        label = next(filter(there, labels), None)
        if labels and label is None:
            raise FileNotFoundError(
                f"dataset: every picture must have a label, got none for {picture}: "
                f"{' or '.join(map(str, labels))} is missing{remark}"
            )
        found.append(Entry(picture, label, picture.stem))
    return found


def _existence() -> Callable[[Path], bool]:
    """Return a test for files that reads each folder once: file systems far away are slow to ask."""

    @cache
    def names(where: Path) -> frozenset[str]:
        return frozenset(path.name for path in where.iterdir()) if where.is_dir() else frozenset()

    return lambda path: path.name in names(path.parent)
