# SPDX-License-Identifier: MIT
"""Small copies of the published data sets in their own layouts, with pictures that show their labels.

Every function writes below ``root`` and returns nothing. ``counts`` is the number of pictures of each split, ``size``
is ``(rows, columns)``. What a label file holds follows from its name, so tests can say what it is:
``label_values(path.stem, VALUES[...], size)``.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import scipy.io
from PIL import Image

SIZE = (32, 48)
_BLOCK = 8

# The 59 classes in labels.txt, with their category numbers.
_CONTEXT_LINES = """
2 aeroplane, 9 bag, 18 bed, 19 bedclothes, 22 bench, 23 bicycle, 25 bird, 31 boat, 33 book, 34 bottle, 44
building, 45 bus, 46 cabinet, 59 car, 65 cat, 68 ceiling, 72 chair, 80 cloth, 85 computer, 98 cow, 104 cup, 105
curtain, 113 dog, 115 door, 144 fence, 158 floor, 159 flower, 162 food, 187 grass, 189 ground, 207 horse, 220
keyboard, 232 light, 258 motorbike, 259 mountain, 260 mouse, 284 person, 295 plate, 296 platform, 308
pottedplant, 324 road, 326 rock, 347 sheep, 349 shelves, 354 sidewalk, 355 sign, 360 sky, 366 snow, 368 sofa,
397 table, 415 track, 416 train, 420 tree, 424 truck, 427 tvmonitor, 440 wall, 445 water, 454 window, 458 wood
"""
CONTEXT_NAMES = {
    int(number): name for number, name in (word.split() for word in _CONTEXT_LINES.split(","))
}

_DROPPED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
VALUES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "cityscapes": tuple(range(34)),
        "ade20k": tuple(range(151)),
        "lip": (*range(20), 255),
        "coco_stuff": tuple(value for value in range(183) if value not in _DROPPED),
        "pascal_context": tuple(range(60)),
        "pascal_context_mat": tuple(range(1, 460)),
    }
)
"""What the label files of each set may hold."""


def label_values(
    stem: str, values: Sequence[int], size: tuple[int, int] = SIZE
) -> np.ndarray[tuple[int, int], np.dtype[np.uint16]]:
    """Return what the label file of that stem holds: blocks of 8 x 8 pixels of chosen values."""
    rng = np.random.default_rng(zlib.crc32(stem.encode()))
    rows, columns = (-(-side // _BLOCK) for side in size)
    blocks = rng.choice(np.asarray(values, dtype=np.uint16), (rows, columns))
    return np.kron(blocks, np.ones((_BLOCK, _BLOCK), dtype=np.uint16))[: size[0], : size[1]]


def write_picture(path: Path, shown: np.ndarray) -> None:
    """Write a picture in which every value of a label has a colour, with some noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(path.stem.encode()))
    colours = shown.astype(int)[..., None] * (37, 91, 53) % 256
    noisy = np.clip(colours + rng.integers(-8, 9, colours.shape), 0, 255)
    Image.fromarray(noisy.astype(np.uint8)).save(path)


def write_png(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def write_matrix(path: Path, name: str, values: np.ndarray) -> None:
    """Write a MATLAB file with one matrix of doubles, as MATLAB has numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {name: values.astype(np.float64)})


def write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


_CITIES = {
    "train": ("aachen", "bremen"),
    "val": ("frankfurt", "lindau"),
    "test": ("berlin", "bielefeld"),
    "train_extra": ("augsburg", "bayreuth"),
}


def cityscapes_tree(
    root: Path, counts: Mapping[str, int] | None = None, size: tuple[int, int] = SIZE
) -> None:
    """Cityscapes: fine labels of train and val, dummies of test, coarse ones of all but test."""
    counts = counts or {"train": 4, "val": 2, "test": 2, "train_extra": 2}
    for split, count in counts.items():
        for number in range(count):
            city = _CITIES[split][number % 2]
            scene = f"{city}_{number:06d}_000019"
            kinds = {"gtCoarse"} if split != "test" else set()
            kinds |= {"gtFine"} if split != "train_extra" else set()
            shown = np.zeros(size)
            for kind in sorted(kinds):
                stem = f"{scene}_{kind}_labelIds"
                shown = label_values(stem, VALUES["cityscapes"], size)
                dummy = np.zeros(size) if split == "test" else shown
                write_png(root / kind / split / city / f"{stem}.png", dummy)
                # What lies beside the label ids, and is not to be taken for them.
                write_png(root / kind / split / city / f"{scene}_{kind}_instanceIds.png", shown)
            write_picture(root / "leftImg8bit" / split / city / f"{scene}_leftImg8bit.png", shown)


def ade20k_tree(
    root: Path,
    counts: Mapping[str, int] | None = None,
    size: tuple[int, int] = SIZE,
    tests: str = "release_test/testing",
) -> None:
    """ADE20K: pictures and annotations of training and validation, and test pictures in the folder ``tests``."""
    counts = counts or {"train": 4, "val": 2, "test": 2}
    folders = {"train": "training", "val": "validation"}
    for split, count in counts.items():
        for number in range(1, count + 1):
            stem = f"ADE_{split}_{number:08d}"
            shown = label_values(stem, VALUES["ade20k"], size)
            if split == "test":
                write_picture(root / tests / f"{stem}.jpg", shown)
                continue
            write_picture(root / "images" / folders[split] / f"{stem}.jpg", shown)
            write_png(root / "annotations" / folders[split] / f"{stem}.png", shown)


def lip_tree(
    root: Path,
    counts: Mapping[str, int] | None = None,
    size: tuple[int, int] = SIZE,
    repeats: int = 0,
) -> None:
    """LIP: with ``repeats=0`` as CE2P has it, with 1 as downloaded, with more with repeated names of archives."""
    counts = counts or {"train": 4, "val": 2, "test": 2}
    for split, count in counts.items():
        tests = split == "test"
        archive = root.joinpath(*["Testing_images" if tests else "TrainVal_images"] * repeats)
        pictures = archive / ("testing_images" if tests and repeats else f"{split}_images")
        labels = root.joinpath(
            *["TrainVal_parsing_annotations"] * repeats, f"{split}_segmentations"
        )
        stems = [f"{1000 + number}_{7 * number + len(split)}" for number in range(count)]
        for stem in stems:
            shown = label_values(stem, VALUES["lip"], size)
            write_picture(pictures / f"{stem}.jpg", shown)
            if not tests:
                write_png(labels / f"{stem}.png", shown)
        write_lines(archive / f"{split}_id.txt", stems[::-1])


def coco_stuff_tree(
    root: Path,
    counts: Mapping[str, int] | None = None,
    size: tuple[int, int] = SIZE,
    ending: str = "mat",
) -> None:
    """COCO-Stuff 10k: labels are MATLAB files, or with ``ending="png"`` PNGs; val is the list ``test``."""
    counts = counts or {"train": 4, "val": 2}
    for split, count in counts.items():
        stems = [
            f"COCO_train2014_{7919 * (number + 1) + len(split):012d}" for number in range(count)
        ]
        for stem in stems:
            shown = label_values(stem, VALUES["coco_stuff"], size)
            write_picture(root / "images" / f"{stem}.jpg", shown)
            label = root / "annotations" / f"{stem}.{ending}"
            write_png(label, shown) if ending == "png" else write_matrix(label, "S", shown)
        write_lines(root / "imageLists" / f"{'test' if split == 'val' else split}.txt", stems[::-1])


def pascal_context_tree(
    root: Path,
    counts: Mapping[str, int] | None = None,
    size: tuple[int, int] = SIZE,
    ending: str = "png",
    devkit: str = "",
) -> None:
    """PASCAL-Context: PNGs with lists of their own, or with ``ending="mat"`` the original labels of all 459 categories.

    ``devkit`` is where below the root the folder of VOC2010 is; original labels stay in the root.
    """
    counts = counts or {"train": 4, "val": 2}
    pngs = ending == "png"
    voc = root / devkit
    for split, count in counts.items():
        stems = [f"2008_{10 * number + len(split):06d}" for number in range(count)]
        for stem in stems:
            shown = label_values(
                stem, VALUES["pascal_context" if pngs else "pascal_context_mat"], size
            )
            write_picture(voc / "JPEGImages" / f"{stem}.jpg", shown)
            if pngs:
                write_png(voc / "SegmentationClassContext" / f"{stem}.png", shown)
            else:
                write_matrix(root / "trainval" / f"{stem}.mat", "LabelMap", shown)
        folder = "SegmentationContext" if pngs else "Main"
        write_lines(voc / "ImageSets" / folder / f"{split}.txt", stems[::-1])
    if not pngs:
        names = [CONTEXT_NAMES.get(number, f"other thing {number}") for number in range(1, 460)]
        write_lines(root / "labels.txt", [f"{at}: {name}" for at, name in enumerate(names, 1)])


TREES: Mapping[str, Callable[[Path], None]] = MappingProxyType(
    {
        "cityscapes": cityscapes_tree,
        "ade20k": ade20k_tree,
        "lip": lip_tree,
        "coco_stuff": coco_stuff_tree,
        "pascal_context_59": pascal_context_tree,
        "pascal_context_60": pascal_context_tree,
    }
)
"""What writes a tree of each source."""

_CONTEXT_MATRICES = partial(pascal_context_tree, ending="mat", devkit="VOCdevkit/VOC2010")
VARIANTS: Mapping[str, tuple[str, Callable[[Path], None]]] = MappingProxyType(
    {
        "ade20k, tests in images": ("ade20k", partial(ade20k_tree, tests="images/testing")),
        "lip, downloaded": ("lip", partial(lip_tree, repeats=1)),
        "lip, doubled": ("lip", partial(lip_tree, repeats=2)),
        "lip, tripled": ("lip", partial(lip_tree, repeats=3)),
        "coco_stuff, PNGs": ("coco_stuff", partial(coco_stuff_tree, ending="png")),
        "context, below a devkit": (
            "pascal_context_60",
            partial(pascal_context_tree, devkit="VOCdevkit/VOC2010"),
        ),
        "context 59, original": ("pascal_context_59", _CONTEXT_MATRICES),
        "context 60, original": ("pascal_context_60", _CONTEXT_MATRICES),
        "context 59, original, flat": (
            "pascal_context_59",
            partial(pascal_context_tree, ending="mat"),
        ),
    }
)
"""Other layouts: the source, and what writes the tree."""
