# SPDX-License-Identifier: MIT
"""PASCAL-Context: pictures of VOC2010 with labels as downloaded, or as PNGs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from ocnet.data.files import Entry
from ocnet.data.labels import IGNORE_INDEX, LabelMap
from ocnet.data.sets.finding import first_file, first_folder, ids, make_entries
from ocnet.data.sets.source import Source
from ocnet.data.sets.tables import bit_colours, names

_NAMES = names(
    """aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet, car,
    cat, ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass,
    ground, horse, keyboard, light, motorbike, mountain, mouse, person, plate, platform, pottedplant, road,
    rock, sheep, shelves, sidewalk, sign, sky, snow, sofa, table, track, train, tree, truck, tvmonitor, wall,
    water, window, wood"""
)
_PNGS, _MATRICES = "SegmentationClassContext", "trainval"


def _list_files(root: Path, split: str) -> list[Entry]:
    """Find ``JPEGImages/<id>.jpg`` and the labels of the ids of a split.

    Lists are ``ImageSets/SegmentationContext/<split>.txt``, where there are such, else those of all pictures,
    ``ImageSets/Main/<split>.txt``: the 10103 labels are of exactly these. A picture without a label is an error.
    """
    labels = _labels(root)
    devkit = _devkit(root)
    where = first_folder(devkit / "JPEGImages")
    lists = devkit / "ImageSets"
    listing = first_file(
        lists / "SegmentationContext" / f"{split}.txt", lists / "Main" / f"{split}.txt"
    )
    ending = "png" if labels.name == _PNGS else "mat"
    return make_entries(
        (where / f"{name}.jpg", (labels / f"{name}.{ending}",)) for name in ids(listing)
    )


def _devkit(root: Path) -> Path:
    """Return the folder of VOC2010: the root, or what the archive of the devkit unpacks below it."""
    inside = root / "VOCdevkit" / "VOC2010"
    return inside if inside.is_dir() else root


def _labels(root: Path) -> Path:
    """Return the folder of labels: PNGs where there are some, else MATLAB files."""
    places = dict.fromkeys((_devkit(root), root))
    return first_folder(*(place / kind for kind in (_PNGS, _MATRICES) for place in places))


def _label_map(background: bool, numbers: dict[str, int], others: Iterable[int]) -> LabelMap:
    """Map the values of the 59 names to classes, all others to the background or to nothing."""
    first = 1 if background else 0
    classes = dict.fromkeys(others, 0 if background else IGNORE_INDEX)
    classes.update({numbers[name]: first + place for place, name in enumerate(_NAMES)})
    return LabelMap(classes)


def _png_map(background: bool) -> LabelMap:
    """Return the map of PNGs: 0 is the background, 1 to 59 the classes."""
    return _label_map(background, {name: value for value, name in enumerate(_NAMES, 1)}, [0])


def _map_at(background: bool, root: Path) -> LabelMap:
    """Return the map of the files that are there: that of PNGs, or what ``labels.txt`` says of its 459 categories."""
    labels = _labels(root)
    if labels.name == _PNGS:
        return _png_map(background)
    table = first_file(labels.parent / "labels.txt")
    numbers = _categories(table)
    missing = [name for name in _NAMES if name not in numbers]
    if missing:
        raise ValueError(
            f"dataset: labels.txt must have all 59 names of PASCAL-Context, got none of "
            f"{', '.join(missing)} in {table}"
        )
    # 0 is no category; what has it belongs to none of the 59 either.
    return _label_map(background, numbers, [0, *numbers.values()])


def _categories(table: Path) -> dict[str, int]:
    """Read lines such as ``3: air conditioner``; names are told apart without their spaces."""
    numbers = {}
    for line in filter(str.strip, table.read_text().splitlines()):
        number, _, name = line.partition(":")
        if not number.strip().isdecimal():
            raise ValueError(
                f"dataset: lines of labels.txt must be a number, a colon and a name, got {line!r} "
                f"in {table}"
            )
        numbers["".join(name.split())] = int(number)
    return numbers


def _source(background: bool) -> Source:
    first = 0 if background else 1
    return Source(
        title=f"PASCAL-Context {60 - first}",
        url="https://cs.stanford.edu/~roozbeh/pascal-context",
        class_names=("background", *_NAMES)[first:],
        palette=bit_colours(60)[first:],
        label_map=_png_map(background),
        splits=("train", "val", "trainval"),
        list_files=_list_files,
        label_map_at=partial(_map_at, background),
    )


PASCAL_CONTEXT_59 = _source(background=False)
"""PASCAL-Context, 59 classes; everything else is ignored.

Labels are PNGs in ``SegmentationClassContext``, as the converters of the Detail API's annotation write them, or the
original ``trainval/<id>.mat`` beside ``labels.txt``; pictures and lists are those of the VOC2010 devkit. Classes are
in the order of their category numbers, which is alphabetical, as in PyTorch-Encoding, HRNet and openseg. The authors'
archive ``59_context_labels`` and their file ``59_labels.txt`` have another order, and are not read; the latter also
calls table, bedclothes and cloth, as the categories are named, diningtable, bedcloth and clothes.

Source: Mottaghi et al., "The Role of Context for Object Detection and Semantic Segmentation in the Wild"; FCN's
``pascalcontext_layers.py`` for the three names; HRNet's ``pascal_ctx.py`` for the category numbers.
"""

PASCAL_CONTEXT_60 = _source(background=True)
"""PASCAL-Context, the 59 classes and the background, which is class 0."""
