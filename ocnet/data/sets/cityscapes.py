# SPDX-License-Identifier: MIT
"""Cityscapes, as its packages unpack."""

from __future__ import annotations

from pathlib import Path

from ocnet.data.files import Entry
from ocnet.data.labels import IGNORE_INDEX, LabelMap
from ocnet.data.sets.finding import first_folder, make_entries, pictures
from ocnet.data.sets.source import Source
from ocnet.data.sets.tables import colours, names

_PICTURE = "_leftImg8bit.png"
# Split: folder of its pictures, and which annotation it has. The files in gtFine/test are dummies.
_SPLITS = {
    "train": ("train", "gtFine"),
    "val": ("val", "gtFine"),
    "test": ("test", None),
    "train_extra": ("train_extra", "gtCoarse"),
    "coarse_train": ("train", "gtCoarse"),
    "coarse_val": ("val", "gtCoarse"),
}
_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def _list_files(root: Path, split: str) -> list[Entry]:
    """Find ``leftImg8bit/<split>/<city>/*_leftImg8bit.png`` and the labels of the same city."""
    part, annotation = _SPLITS[split]
    where = first_folder(root / "leftImg8bit" / part)
    pairs = []
    for city in sorted(path for path in where.iterdir() if path.is_dir()):
        for picture in pictures(city, _PICTURE):
            scene = picture.name.removesuffix(_PICTURE)
            label = f"{scene}_{annotation}_labelIds.png"
            place = (root / annotation / part / city.name / label,) if annotation else ()
            pairs.append((picture, place))
    return make_entries(
        pairs, remark="; of the label files, *_labelIds.png are read, not *_labelTrainIds.png"
    )


CITYSCAPES = Source(
    title="Cityscapes",
    url="https://www.cityscapes-dataset.com",
    class_names=names(
        """road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky,
        person, rider, car, truck, bus, train, motorcycle, bicycle"""
    ),
    palette=colours(
        """804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 00008e
        000046 003c64 005064 0000e6 770b20"""
    ),
    # Files hold label ids, 0 to 33; -1, licence plates, is 255 in files of 8 bits.
    label_map=LabelMap.listed(_IDS, ignored=(*range(34), IGNORE_INDEX)),
    splits=(*_SPLITS, "trainval"),
    list_files=_list_files,
)
"""Cityscapes, 19 classes.

``train_extra`` and the splits ``coarse_...`` have the coarse labels, ``test`` has none. OCNet's list ``train+`` is
``train+train_extra``; its ``train++``, ``train+val+train_extra``, has one picture less.

Source: the ``labels.py`` of cityscapesScripts, and ``dataset/cityscapes.py`` of OCNet.
"""
