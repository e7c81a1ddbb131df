# SPDX-License-Identifier: MIT
"""COCO-Stuff 10k, version 1.1, as its archive unpacks."""

from __future__ import annotations

from pathlib import Path

from ocnet.data.files import Entry
from ocnet.data.labels import LabelMap
from ocnet.data.sets.finding import first_file, first_folder, ids, make_entries
from ocnet.data.sets.source import Source
from ocnet.data.sets.tables import bit_colours, names

_LISTS = {"train": "train.txt", "val": "test.txt"}
# COCO dropped these things before it was published: no pixel of any file has them.
_REMOVED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
_IDS = tuple(number for number in range(1, 183) if number not in _REMOVED)


def _list_files(root: Path, split: str) -> list[Entry]:
    """Find ``images/<id>.jpg`` and ``annotations/<id>.mat`` (or ``.png``) of ``imageLists/<split>.txt``."""
    listing = first_file(root / "imageLists" / _LISTS[split])
    where, labels = first_folder(root / "images"), first_folder(root / "annotations")
    return make_entries(
        (where / f"{name}.jpg", (labels / f"{name}.mat", labels / f"{name}.png"))
        for name in ids(listing)
    )


COCO_STUFF = Source(
    title="COCO-Stuff 10k v1.1",
    url="https://github.com/nightrome/cocostuff10k",
    class_names=names(
        """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
        stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,
        backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
        baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl,
        banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch,
        potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave,
        oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush,
        banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other,
        ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence,
        floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit,
        furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat, metal, mirror-stuff,
        moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other, plastic, platform, playingfield,
        railing, railroad, river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow,
        solid-other, stairs, stone, straw, structural-other, table, tent, textile-other, towel, tree, vegetable,
        wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other,
        waterdrops, window-blind, window-other, wood"""
    ),
    palette=tuple(bit_colours(183)[number] for number in _IDS),
    # The dropped ids are unknown, not ignored: labels of version 1.0, numbered otherwise, have them.
    label_map=LabelMap.listed(_IDS, ignored=(0,)),
    splits=("train", "val", "trainval"),
    list_files=_list_files,
)
"""COCO-Stuff 10k, 171 classes: 80 things and 91 stuffs. In label files 0 is unlabelled; ``val`` is the list ``test``.

Source: ``labels.txt`` of the data set without the things that COCO dropped. It has no palette of its own that is fixed;
a class has the VOC colour of its id.
"""
