# SPDX-License-Identifier: MIT
"""LIP, single persons, as it is downloaded or as CE2P keeps it."""

from __future__ import annotations

from pathlib import Path

from ocnet.data.files import Entry
from ocnet.data.labels import LabelMap
from ocnet.data.sets.finding import first_file, first_folder, ids, make_entries
from ocnet.data.sets.source import Source
from ocnet.data.sets.tables import colours, names

# How often an archive that is unpacked into a folder of its own name repeats that name.
_REPEATS = 3


def _list_files(root: Path, split: str) -> list[Entry]:
    """Find the pictures whose ids a list has, and their labels.

    CE2P has ``train_id.txt``, ``train_images``, ``train_segmentations`` and so on in the root folder. The
    download has the first two in ``TrainVal_images`` (those of tests in ``Testing_images``) and the last in
    ``TrainVal_parsing_annotations``.
    """
    if split == "test":
        where = first_folder(
            root / "test_images", *_inside(root, "Testing_images", "testing_images")
        )
    else:
        where = first_folder(*_inside(root, "TrainVal_images", f"{split}_images"))
    listing = first_file(where.parent / f"{split}_id.txt", root / f"{split}_id.txt")
    if split == "test":
        return make_entries((where / f"{name}.jpg", ()) for name in ids(listing))
    labels = first_folder(*_inside(root, "TrainVal_parsing_annotations", f"{split}_segmentations"))
    return make_entries((where / f"{name}.jpg", (labels / f"{name}.png",)) for name in ids(listing))


def _inside(root: Path, archive: str, name: str) -> list[Path]:
    """Return where a folder of an archive may be: in the root, or below the name of the archive."""
    return [root.joinpath(*[archive] * repeats, name) for repeats in range(_REPEATS + 1)]


LIP = Source(
    title="LIP",
    url="https://sysu-hcp.net/lip",
    class_names=names(
        """Background, Hat, Hair, Glove, Sunglasses, Upper-clothes, Dress, Coat, Socks, Pants, Jumpsuits, Scarf,
        Skirt, Face, Left-arm, Right-arm, Left-leg, Right-leg, Left-shoe, Right-shoe"""
    ),
    palette=colours(
        """000000 800000 ff0000 005500 aa0033 ff5500 000055 0077dd 555500 005555 553300 345680 008000 0000ff
        33aadd 00ffff 55ffaa aaff55 ffff00 ffaa00"""
    ),
    label_map=LabelMap.identity(20),
    splits=("train", "val", "trainval", "test"),
    list_files=_list_files,
    mirror_pairs=((14, 15), (16, 17), (18, 19)),
)
"""LIP, look into person, 20 classes with the background.

Source: ``README_parsing.md`` of the download for the classes, and the code of JPPNet, by the authors of the data
set, for the colours. Left and right of mirrored pictures are exchanged by ``mirror_pairs``, so the extra folder of
reversed labels is not needed.
"""
