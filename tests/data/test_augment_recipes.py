# SPDX-License-Identifier: MIT
"""Random crops against the published recipes, restated: every sample is one that the recipe can give."""

import math
from typing import Any

import cv2
import numpy as np
import pytest

from ocnet.data import INPUTS, Crops
from tests.data.random_samples import LIP_PAIRS, OCNET_SCALES, noise, seeded


def enumerated(variants: list[tuple[np.ndarray, np.ndarray]], crops: Crops, given: Any) -> None:
    """Check that each sample is one of ``variants``, images ``(H, W, 3)``, and that nearly all come."""
    keys = {
        (np.float32(image).transpose(2, 0, 1).tobytes(), label.tobytes())
        for image, label in variants
    }
    found = set()
    for seed in range(6 * len(keys)):
        image, label = crops(*given, seeded(seed))
        found.add((image.contiguous().numpy().tobytes(), label.tobytes()))
    assert found <= keys
    # A variant misses all draws with a chance of exp(-6).
    assert len(found) > 0.9 * len(keys)


def test_recipe_of_ocnet() -> None:
    """Scale of the set, by factor; float; mean colour at the end; crop; mirror."""
    picture, label = noise(21, 33)
    variants = []
    for scale in OCNET_SCALES:
        small = {"fx": scale, "fy": scale}
        image = cv2.resize(picture, None, interpolation=cv2.INTER_LINEAR, **small)
        classes = cv2.resize(label, None, interpolation=cv2.INTER_NEAREST, **small)
        image = np.float32(image) - np.float32([102.9801, 115.9465, 122.7717])
        # As many rows as the largest scale, one column less: never a crop of rows, two of columns.
        lack = (44 - image.shape[0], max(0, 68 - image.shape[1]))
        image = np.pad(image, ((0, lack[0]), (0, lack[1]), (0, 0)))
        classes = np.pad(classes, ((0, lack[0]), (0, lack[1])), constant_values=255)
        for left in range(image.shape[1] - 68 + 1):
            cut = image[:, left : left + 68], classes[:, left : left + 68]
            variants += [cut, (cut[0][:, ::-1], cut[1][:, ::-1])]
    assert len(variants) == 2 * (len(OCNET_SCALES) + 1)
    crops = Crops(
        INPUTS["ocnet"],
        crop=(44, 68),
        scale_min=0.5,
        scale_max=2.1,
        scale_step=0.1,
        flip="after",
    )
    enumerated(variants, crops, (picture, label))


def test_recipe_of_openseg() -> None:
    """Mirror with pairs; short side, cubic; scale and aspect, cubic, down; brightness; padding anywhere."""
    picture, label = noise(9, 14)
    scale, aspect = 0.77, 1.07
    variants = []
    for mirrored in (False, True):
        image, classes = picture, label
        if mirrored:
            image, classes = cv2.flip(image, 1), cv2.flip(classes, 1)
            old = classes.copy()
            for one, other in LIP_PAIRS:
                classes[old == one], classes[old == other] = other, one
        sizes = [
            (round(14 * 13 / 9), 13),
            (
                int(round(14 * 13 / 9) * math.sqrt(aspect) * scale),
                int(13 * math.sqrt(1 / aspect) * scale),
            ),
        ]
        for size in sizes:
            image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
            classes = cv2.resize(classes, size, interpolation=cv2.INTER_NEAREST)
        for shift in (-2, -1, 0, 1, 2):
            bright = np.clip(np.float32(image) + shift, 0, 255)[..., ::-1]
            bright = bright - np.float32([102.9801, 115.9465, 122.7717])
            for top in range(3):
                for left in range(2):
                    around = ((top, 2 - top), (left, 1 - left))
                    variants.append(
                        (
                            np.pad(bright, (*around, (0, 0))),
                            np.pad(classes, around, constant_values=255),
                        )
                    )
    crops = Crops(
        INPUTS["openseg"],
        crop=(sizes[1][1] + 2, sizes[1][0] + 1),
        resize_short=13,
        scale_min=scale,
        scale_max=scale,
        aspect_min=aspect,
        aspect_max=aspect,
        rounding="down",
        interpolation="cubic",
        flip="before",
        brightness=2,
        pad_at="random",
        mirror_pairs=LIP_PAIRS,
    )
    enumerated(variants, crops, (picture, label))


@pytest.mark.parametrize("first", [None, 10])
def test_recipe_of_hrnet(first: int | None) -> None:
    """Short side (ADE20K, COCO-Stuff); long side times the scale; black at the end; crop; mirror."""
    picture, label = noise(17, 11)
    variants = []
    if first is not None:
        size = (first, int(17 * first / 11 + 0.5))
        small = cv2.resize(picture, size), cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    else:
        small = picture, label
    height, width = small[1].shape
    for tenth in range(12):
        rows = int(13 * (0.5 + tenth / 10.0) + 0.5)
        size = (int(width * rows / height + 0.5), rows)
        image = cv2.resize(small[0], size, interpolation=cv2.INTER_LINEAR)
        classes = cv2.resize(small[1], size, interpolation=cv2.INTER_NEAREST)
        lack = (max(0, 18 - size[1]), max(0, 20 - size[0]))
        image = np.pad(image, ((0, lack[0]), (0, lack[1]), (0, 0)))
        classes = np.pad(classes, ((0, lack[0]), (0, lack[1])), constant_values=255)
        image = np.float32(image) / np.float32(255)
        image = (image - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
        for top in range(image.shape[0] - 18 + 1):
            cut = image[top : top + 18], classes[top : top + 18]
            variants += [cut, (cut[0][:, ::-1], cut[1][:, ::-1])]
    crops = Crops(
        INPUTS["imagenet"],
        crop=(18, 20),
        resize_short=first,
        resize_long=13,
        scale_min=0.5,
        scale_max=1.6,
        scale_step=0.1,
        flip="after",
        pad="black",
    )
    enumerated(variants, crops, (picture, label))
