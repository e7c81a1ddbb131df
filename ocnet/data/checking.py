# SPDX-License-Identifier: MIT
"""What is in a data set, and what is wrong with it, before any training."""

from __future__ import annotations

import filecmp
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ocnet.data.base import DatasetInfo, SegmentationDataset, check_labels
from ocnet.data.check_report import CheckReport, ClassCount, Problem, Size, SplitReport
from ocnet.data.files import PictureFiles, check_size
from ocnet.data.labels import IGNORE_INDEX, LabelMap
from ocnet.data.suggestions import Suggestion, suggest

UNKNOWN = -1
"""Class number, in :func:`rows_to_show`, of pixels whose value is no class."""

_THREADS = 4
_Read = TypeVar("_Read")


def examine(
    splits: Mapping[str, SegmentationDataset],
    *,
    limit: int | None = None,
    unlabelled: Collection[str] = (),
    on_item: Callable[[str, int, int], None] | None = None,
) -> CheckReport:
    """Read the pictures and labels of a data set, and report what is in them and what is wrong.

    A file that cannot be read stops nothing: it is a problem of the report like all others. Two pictures are
    the same when all their pixels are: copies, under whatever name, and lossless re-encodings. Pictures that only
    look the same, such as one saved again as a JPEG, are not found.

    Args:
        splits: the data set, by the names of its splits; the first is the one to train on. All have the same
            classes.
        limit: read at most this many pictures of each split, evenly spread; ``None``: all.
        unlabelled: names of splits that need no labels.
        on_item: called after each picture with the name of the split, how many of it are done, and of how
            many.

    Returns:
        The report.

    Raises:
        ValueError: there is no split, or ``limit`` is below 1.
        RuntimeError: a package that reads the labels is not installed.
    """
    if not splits:
        raise ValueError("examine: splits must have at least one, got none")
    if limit is not None and limit < 1:
        raise ValueError(f"examine: limit must be at least 1, got {limit}")
    findings = _Findings()
    tallies: dict[str, _Tally] = {}
    for name, data in splits.items():
        tally = tallies[name] = _Tally(name, data)
        chosen = _spread(len(data), limit)
        for done, look in enumerate(_looks(data, chosen), 1):
            tally.add(look, findings, needs_label=name not in unlabelled)
            if on_item is not None:
                on_item(name, done, len(chosen))
        tally.close(findings, needs_label=name not in unlabelled)
    reports = {name: tally.report() for name, tally in tallies.items()}
    _compare_classes(reports, findings)
    suggestion = _suggestion(tallies, findings)
    return CheckReport(reports, tuple(findings.problems), tuple(findings.warnings), suggestion)


def rows_to_show(
    splits: Mapping[str, SegmentationDataset], count: int = 12
) -> list[tuple[NDArray[np.uint8], NDArray[np.int64], str]]:
    """Return pictures with their labels, for a contact sheet.

    Args:
        splits: the data set, by the names of its splits.
        count: at most this many, the same number of each split, evenly spread.

    Returns:
        Picture ``(H, W, 3)``, classes ``(H, W)`` and caption of each. Classes are ``IGNORE_INDEX`` where there
        is no label, and ``UNKNOWN`` where a value is not one of the data set. Pictures or labels that cannot be
        read, or do not fit each other, are left out.
    """
    rows = []
    for name, data in splits.items():
        for index in _spread(len(data), max(1, count // len(splits))):
            shown = _shown(data, index)
            if shown is not None:
                rows.append((shown[0], shown[1], f"{name}: {shown[2]}"))
    return rows[:count]


@dataclass(frozen=True)
class _Look:
    """What one picture and its label are; of what could not be read, nothing."""

    name: str
    file: Path | None
    size: Size | None = None
    digest: bytes | None = None
    values: Mapping[int, int] | None = None
    has_label: bool = True
    problems: tuple[tuple[str, str, str], ...] = ()  # kind, file, sentence


@dataclass
class _Findings:
    """All that was found so far."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    # Pixels of a picture -> split and name it was first seen with.
    seen: dict[bytes, tuple[str, _Look]] = field(default_factory=dict)


class _Tally:
    """Adds up what is in a split."""

    def __init__(self, split: str, data: SegmentationDataset) -> None:
        self._split = split
        self._length = len(data)
        self.info = data.info
        # Samples of other data sets have class numbers already.
        self.from_files = isinstance(data, PictureFiles)
        numbers = {number: number for number in range(data.num_classes)}
        self._map = (
            data.info.label_map.classes
            if self.from_files
            else {**numbers, data.ignore_index: IGNORE_INDEX}
        )
        self._sizes: Counter[Size] = Counter()
        self.values: Counter[int] = Counter()
        self._pixels: Counter[int] = Counter()
        self._pictures: Counter[int] = Counter()
        self._unlabelled: list[_Look] = []
        self._labelled = 0
        self._looked_at = 0

    def add(self, look: _Look, findings: _Findings, *, needs_label: bool) -> None:
        self._looked_at += 1
        findings.problems += [Problem(kind, self._split, *rest) for kind, *rest in look.problems]
        if look.size is not None:
            self._sizes[look.size] += 1
        if look.digest is not None:
            self._compare(look, look.digest, findings)
        if not look.has_label and needs_label:
            self._unlabelled.append(look)
        if look.values is not None:
            self._count(look, look.values, findings)

    def close(self, findings: _Findings, *, needs_label: bool) -> None:
        """Report what is about the split as a whole."""
        if self._length == 0:
            sentence = f"dataset: split must have pictures, got none in {self._split}"
            findings.problems.append(Problem("empty split", self._split, "", sentence))
        elif needs_label and len(self._unlabelled) == self._looked_at:
            sentence = f"dataset: split must have labels to be trained or scored on, got none in {self._split}"
            findings.problems.append(Problem("no labels", self._split, "", sentence))
        else:
            for look in self._unlabelled:
                sentence = f"dataset: picture must have a label, got none for {look.name}"
                findings.problems.append(Problem("no label", self._split, look.name, sentence))

    def report(self) -> SplitReport:
        total = max(sum(self._pixels.values()), 1)
        by_area = sorted(self._sizes, key=lambda size: (size[0] * size[1], size))
        common = self._sizes.most_common(1)
        return SplitReport(
            pictures=self._length,
            looked_at=self._looked_at,
            labelled=self._labelled,
            smallest=by_area[0] if by_area else None,
            largest=by_area[-1] if by_area else None,
            most_common=common[0][0] if common else None,
            classes=tuple(
                ClassCount(
                    name,
                    self._pixels[number],
                    self._pixels[number] / total,
                    self._pictures[number],
                )
                for number, name in enumerate(self.info.class_names)
            ),
            ignored=self._pixels[IGNORE_INDEX],
            ignored_share=self._pixels[IGNORE_INDEX] / total,
            values=dict(sorted(self.values.items())),
        )

    def _count(self, look: _Look, values: Mapping[int, int], findings: _Findings) -> None:
        self._labelled += 1
        self.values.update(values)
        pixels: Counter[int] = Counter()
        for value, count in values.items():
            pixels[self._map.get(value, UNKNOWN)] += count
        self._pixels.update(pixels)
        self._pictures.update(pixels.keys())
        if pixels.keys() == {IGNORE_INDEX}:
            sentence = f"dataset: label must have pixels with a class, got only ignored ones of {look.name}"
            findings.warnings.append(Problem("ignored label", self._split, look.name, sentence))

    def _compare(self, look: _Look, digest: bytes, findings: _Findings) -> None:
        split, first = findings.seen.setdefault(digest, (self._split, look))
        if first is look:
            return
        what = "a copy" if _same_files(first.file, look.file) else "the same pixels"
        where = f"{what} of {first.file or first.name} as {look.file or look.name}"
        if split == self._split:
            sentence = f"dataset: pictures of {split} must differ, got {where}"
            findings.warnings.append(Problem("repeated picture", split, look.name, sentence))
        else:
            sentence = f"dataset: {self._split} must have no picture of {split}, got {where}"
            findings.problems.append(Problem("leak", self._split, look.name, sentence))


def _looks(data: SegmentationDataset, chosen: Sequence[int]) -> Iterator[_Look]:
    """Look at pictures, in order."""
    if not isinstance(data, PictureFiles):
        for index in chosen:
            yield _look_at_sample(data, index)
        return
    # Decoders and hashes let go of the interpreter, so threads help; files are read by nothing else here.
    pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
    try:
        yield from pool.map(lambda index: _look_at_files(data, index), chosen)
    finally:
        pool.shutdown(cancel_futures=True)


def _look_at_files(data: PictureFiles, index: int) -> _Look:
    entry = data.entries[index]
    problems: list[tuple[str, str, str]] = []
    picture, trouble = _attempt(lambda: data.picture(index), entry.picture)
    if trouble:
        problems.append(("unreadable picture", str(entry.picture), trouble))
    size = None if picture is None else (picture.shape[1], picture.shape[0])
    digest = None if picture is None else _digest(picture)
    values = None
    if entry.label is not None:
        raw, trouble = _attempt(lambda: data.raw_label(index), entry.label)
        if raw is None:
            problems.append(("unreadable label", str(entry.label), trouble))
        else:
            values = _histogram(raw)
            found = _label_problems(raw, values, size, data.info.label_map, entry.label)
            problems += [(kind, str(entry.label), sentence) for kind, sentence in found]
    return _Look(
        entry.name, entry.picture, size, digest, values, entry.label is not None, tuple(problems)
    )


def _label_problems(
    raw: NDArray[Any],
    values: Mapping[int, int],
    size: Size | None,
    label_map: LabelMap,
    path: Path,
) -> Iterator[tuple[str, str]]:
    """Yield kind and sentence of what is wrong with a label, in the words that training has for it."""
    if values.keys() - label_map.classes.keys():
        yield "unknown value", _attempt(lambda: label_map.decode(raw, str(path)), path)[1]
    if size is not None and raw.shape[::-1] != size:
        yield "size mismatch", _attempt(lambda: check_size(raw, size[::-1], str(path)), path)[1]


def _look_at_sample(data: SegmentationDataset, index: int) -> _Look:
    try:
        sample = data[index]
        check_labels(sample.label, data.num_classes, data.ignore_index, sample.name)
    except (ValueError, TypeError, OSError) as error:
        sentence = " ".join(str(error).split())
        return _Look(
            f"sample {index}", None, problems=(("bad sample", f"sample {index}", sentence),)
        )
    values, counts = torch.unique(sample.label, return_counts=True)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    height, width = sample.label.shape
    return _Look(sample.name, None, (width, height), _digest(sample.image.numpy()), found)


def _attempt(read: Callable[[], _Read], path: Path) -> tuple[_Read | None, str]:
    """Read or check a file; return what comes of it, or a sentence that names it."""
    try:
        return read(), ""
    except RuntimeError:
        # About this installation, not about the file.
        raise
    # What broken files make decoders raise is of every kind.
    except Exception as error:
        text = " ".join(str(error).split())
        if str(path) not in text:
            text = f"dataset: file must be readable, got {path} ({text})"
        return None, text


def _digest(pixels: NDArray[Any]) -> bytes:
    found = hashlib.blake2b(f"{pixels.shape} {pixels.dtype}".encode(), digest_size=16)
    found.update(np.ascontiguousarray(pixels).data)
    return found.digest()


def _same_files(one: Path | None, other: Path | None) -> bool:
    return one is not None and other is not None and filecmp.cmp(one, other, shallow=False)


def _histogram(raw: NDArray[Any]) -> dict[int, int]:
    counts = np.bincount(raw.ravel())
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _spread(length: int, limit: int | None) -> list[int]:
    """Return up to ``limit`` of ``length`` indices, evenly spread."""
    count = length if limit is None else min(limit, length)
    return [position * length // count for position in range(count)]


def _compare_classes(reports: Mapping[str, SplitReport], findings: _Findings) -> None:
    """Warn of classes that cannot be learned."""
    (first, trained), *others = reports.items()
    if trained.labelled == 0:
        return
    if trained.absent:
        sentence = (
            f"dataset: {first} must show every class, got no pixel of {', '.join(trained.absent)} "
            f"in {trained.labelled} labels"
        )
        findings.warnings.append(Problem("absent class", first, "", sentence))
    for name, other in others:
        unseen = [
            each.name for each in other.classes if each.pixels and each.name in trained.absent
        ]
        if unseen:
            sentence = f"dataset: {name} must have no class that {first} never shows, got {', '.join(unseen)}"
            findings.warnings.append(Problem("unseen class", name, "", sentence))


def _suggestion(tallies: Mapping[str, _Tally], findings: _Findings) -> Suggestion | None:
    """Guess what the labels of all splits are; a guess about values that are allowed is a finding too."""
    values: set[int] = set()
    info: DatasetInfo | None = None
    for tally in tallies.values():
        if tally.from_files:
            values |= tally.values.keys()
            info = tally.info
    found = None if info is None else suggest(values, info)
    if found is None or any(problem.kind == "unknown value" for problem in findings.problems):
        return found
    finding = Problem("suspicious labels", next(iter(tallies)), "", f"dataset: {found.sentence}")
    # Masks whose 255 is read as "ignored" have one class left, so nothing can be learned from them.
    (findings.warnings if found.label_map is None else findings.problems).append(finding)
    return found


def _shown(
    data: SegmentationDataset, index: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64], str] | None:
    """Return picture, classes and name of a row of a contact sheet, where they can be read."""
    if not isinstance(data, PictureFiles):
        return _shown_sample(data, index)
    entry = data.entries[index]
    picture = _attempt(lambda: data.picture(index), entry.picture)[0]
    if picture is None:
        return None
    classes = np.full(picture.shape[:2], IGNORE_INDEX, dtype=np.int64)
    if entry.label is not None:
        raw = _attempt(lambda: data.raw_label(index), entry.label)[0]
        if raw is None or raw.shape != classes.shape:
            return None
        table = np.full(int(raw.max()) + 1, UNKNOWN, dtype=np.int64)
        for value, number in data.info.label_map.classes.items():
            if value < len(table):
                table[value] = number
        classes = table[raw]
    return picture, classes, entry.name


def _shown_sample(
    data: SegmentationDataset, index: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64], str] | None:
    try:
        sample = data[index]
    except (ValueError, TypeError, OSError):
        return None
    image = sample.image.permute(1, 2, 0).numpy()
    low, high = float(image.min()), float(image.max())
    stretched = np.rint(255 * (image - low) / max(high - low, 1e-6)).astype(np.uint8)
    picture = np.ascontiguousarray(np.broadcast_to(stretched, (*stretched.shape[:2], 3)))
    label = sample.label.numpy()
    return picture, np.where(label == data.ignore_index, IGNORE_INDEX, label), sample.name
