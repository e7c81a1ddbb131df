# SPDX-License-Identifier: MIT
"""Random crops: what they do to picture and label, and how often."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from ocnet.data import Crops, Normalise
from tests.data.random_samples import (
    DRAWS,
    LIP_PAIRS,
    OCNET_SCALES,
    Raw,
    assert_repeatable,
    check_law,
    check_uniform,
    marked,
    noise,
    numbers_after,
    seeded,
)

MEAN, STD = (0.5, 0.25, 0.125), (0.25, 0.5, 1.0)


class Plus:
    """The same plus 1000, so that no picture gives 0."""

    channels = 3

    def __call__(self, picture: np.ndarray) -> torch.Tensor:
        return Raw()(picture) + 1000


def numbers(image: torch.Tensor) -> np.ndarray:
    """Return the numbers of the pixels of a marked picture."""
    return (image[0] + 256 * image[1]).numpy().astype(int)


def test_picture_and_label_move_together() -> None:
    crops = Crops(Raw(), crop=(6, 8), flip="after")
    flips, corners = set(), set()
    for seed in range(100):
        image, label = crops(*marked(12, 20), seeded(seed))
        assert (image.dtype, image.shape) == (torch.float32, (3, 6, 8))
        assert (label.dtype, label.shape) == (np.uint16, (6, 8))
        np.testing.assert_array_equal(numbers(image), label)
        (step,) = set(np.diff(label.astype(int), axis=1).ravel())
        assert set(np.diff(label.astype(int), axis=0).ravel()) == {20}
        flips.add(step)
        corners.add(label.min())
    assert flips == {1, -1}
    assert len(corners) > 40


@pytest.mark.parametrize("flip", ["before", "after"])
@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_scaled_picture_and_label_stay_together(flip: Any, interpolation: Any) -> None:
    # Two halves of one colour each, and the label says which: only pixels at the seam may disagree.
    label = np.zeros((20, 20), dtype=np.uint16)
    label[:, 12:] = 300
    picture = np.where(label[..., None] > 0, 200, 10).astype(np.uint8).repeat(3, axis=2)
    crops = Crops(
        Raw(),
        crop=(14, 14),
        scale_min=0.5,
        scale_max=2.0,
        aspect_min=0.8,
        aspect_max=1.25,
        flip=flip,
        interpolation=interpolation,
        ignore_index=255,
    )
    for seed in range(60):
        image, classes = crops(picture, label, seeded(seed))
        assert set(np.unique(classes)) <= {0, 255, 300}
        inside = classes != 255
        wrong = inside & ((image[0].numpy() > 105) != (classes == 300))
        assert wrong.sum(axis=1).max() <= 1
        assert (image[0].numpy()[~inside] == 0).all()


def test_offsets_are_uniform_up_to_both_ends() -> None:
    crops = Crops(Raw(), crop=(3, 4))
    corners = []
    generator = seeded()
    for _ in range(DRAWS):
        label = crops(*marked(5, 8), generator)[1]
        corners.append(divmod(int(label[0, 0]), 8))
    check_uniform(corners, [(top, left) for top in range(3) for left in range(5)])


def test_random_padding_is_uniform_up_to_both_ends() -> None:
    crops = Crops(Raw(), crop=(5, 7), pad_at="random", ignore_index=9)
    corners = []
    generator = seeded()
    for _ in range(DRAWS):
        label = crops(*marked(3, 3), generator)[1]
        corners.append(tuple(np.argwhere(label != 9)[0]))
    check_uniform(corners, [(top, left) for top in range(3) for left in range(5)])


def test_one_side_can_be_cropped_and_the_other_padded() -> None:
    image, label = Crops(Plus(), crop=(5, 4))(*marked(3, 9), seeded(1))
    assert (label[3:] == 255).all()
    assert (image[:, 3:] == 0).all()
    np.testing.assert_array_equal(numbers(image[:, :3] - 1000), label[:3])
    assert set(np.diff(label[:3].astype(int), axis=1).ravel()) == {1}


@pytest.mark.parametrize("flip", ["before", "after"])
def test_half_of_the_samples_are_mirrored(flip: Any) -> None:
    crops = Crops(Raw(), crop=(1, 2), flip=flip)
    generator = seeded()
    mirrored = []
    for _ in range(4 * DRAWS):
        label = crops(*marked(1, 2), generator)[1]
        mirrored.append(int(label[0, 0]))
    check_uniform(mirrored, [0, 1])


def test_flip_before_pads_at_the_end_and_after_at_the_start() -> None:
    sides = {}
    for flip in ("before", "after"):
        for seed in range(10):
            crops = Crops(Raw(), crop=(2, 3), flip=flip)
            label = crops(*marked(2, 2), seeded(seed))[1]
            inside = tuple(int(value) for value in label[0] if value != 255)
            sides[flip, inside] = [bool(value == 255) for value in label[0]].index(True)
    assert sides == {
        ("before", (0, 1)): 2,
        ("before", (1, 0)): 2,
        ("after", (0, 1)): 2,
        ("after", (1, 0)): 0,
    }


def test_brightness_is_uniform_up_to_both_ends() -> None:
    crops = Crops(Raw(), crop=(1, 1), brightness=10)
    grey = np.full((1, 1, 3), 100, dtype=np.uint8)
    generator = seeded()
    shifts = []
    for _ in range(DRAWS):
        image = crops(grey, np.zeros((1, 1), dtype=np.uint8), generator)[0]
        assert len(image.unique()) == 1
        shifts.append(int(image[0, 0, 0]) - 100)
    check_uniform(shifts, list(range(-10, 11)))


def test_brightness_stays_within_the_range_of_pictures() -> None:
    crops = Crops(Raw(), crop=(1, 2), brightness=255)
    ends = np.array([[[0, 0, 0], [255, 255, 255]]], dtype=np.uint8)
    pairs = set()
    for seed in range(50):
        dark, bright = crops(ends, np.zeros((1, 2), dtype=np.uint8), seeded(seed))[0][0, 0].tolist()
        assert dark == 0 or bright == 255
        assert 0 <= dark <= bright <= 255
        pairs.add((dark, bright))
    assert len(pairs) > 30


def test_scales_are_uniform_over_the_set() -> None:
    # OCNet's; the widths of 1000 pixels are all different.
    crops = Crops(Raw(), crop=(1, 2200), scale_min=0.5, scale_max=2.1, scale_step=0.1)
    picture, label = np.zeros((1, 1000, 3), dtype=np.uint8), np.zeros((1, 1000), dtype=np.uint8)
    generator = seeded()
    widths = [int((crops(picture, label, generator)[1] == 0).sum()) for _ in range(DRAWS)]
    check_uniform(widths, [round(1000 * scale) for scale in OCNET_SCALES])


@pytest.mark.parametrize("step", [0.1, 0.05, 0.3])
def test_stepped_scales_are_the_decimals(step: float) -> None:
    # To the last bit: a side that is half a pixel times a scale is rounded one way or the other by it.
    crops = Crops(Raw(), crop=(1, 1), scale_min=0.5, scale_max=2.0, scale_step=step)
    count = round(1.5 / step) + 1
    found = {crops._scale(draw) for draw in np.linspace(0, 1 - 1e-9, 20 * count)}
    exact = {round(100 * 0.5 + number * 100 * step) / 100 for number in range(count)}
    assert found == exact


def test_scale_and_aspect_laws() -> None:
    crops = Crops(
        Raw(),
        crop=(110, 130),
        scale_min=0.5,
        scale_max=1.5,
        aspect_min=0.5,
        aspect_max=1.6,
        rounding="down",
    )
    height, width = 50, 60
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    generator = seeded()
    scales, aspects = [], []
    for _ in range(DRAWS):
        label = crops(picture, picture[..., 0], generator)[1] == 0
        rows, columns = int(label[:, 0].sum()), int(label[0].sum())
        # The sides before they were rounded down are between these and one more.
        sides = [(rows + up) / height for up in (0, 1)], [(columns + up) / width for up in (0, 1)]
        scales.append([math.sqrt(sides[0][up] * sides[1][up]) for up in (0, 1)])
        aspects.append([sides[1][0] / sides[0][1], sides[1][1] / sides[0][0]])
    for found, (smallest, largest) in ((scales, (0.5, 1.5)), (aspects, (0.5, 1.6))):
        low, high = zip(*found, strict=True)
        between = largest - smallest
        assert max(low) <= largest
        assert min(high) >= smallest
        check_law(
            low,
            high,
            lambda point, a=smallest, b=between: min(max((point - a) / b, 0), 1),
            np.linspace(smallest, largest, 41),
        )


@pytest.mark.parametrize("rounding", ["nearest", "down"])
def test_sides_of_a_known_scale_and_aspect(rounding: Any) -> None:
    for scale, aspect in ((1.3, 0.81), (0.7, 1.21), (0.55, 1.0), (2.0, 1.1)):
        crops = Crops(
            Raw(),
            crop=(120, 120),
            scale_min=scale,
            scale_max=scale,
            aspect_min=aspect,
            aspect_max=aspect,
            rounding=rounding,
        )
        inside = crops(*noise(37, 51), seeded())[1] != 255
        sides = 37 * scale * math.sqrt(1 / aspect), 51 * scale * math.sqrt(aspect)
        whole = [round(side) if rounding == "nearest" else math.floor(side) for side in sides]
        assert [int(inside[:, 0].sum()), int(inside[0].sum())] == whole


def test_tiny_pictures_keep_a_pixel() -> None:
    for rounding in ("nearest", "down"):
        crops = Crops(Raw(), crop=(2, 2), scale_min=0.2, scale_max=0.2, rounding=rounding)
        assert (crops(*marked(1, 3), seeded())[1] != 255).sum() == 1


@pytest.mark.parametrize(
    ("options", "before", "after"),
    [
        # 40.5 goes to the even one,
        ({"resize_short": 30}, (20, 27), (30, 40)),
        ({"resize_short": 30}, (27, 20), (40, 30)),
        ({"resize_to": (9, 31)}, (20, 27), (9, 31)),
        ({"resize_long": 41}, (20, 27), (30, 41)),
        ({"resize_long": 25}, (40, 20), (25, 13)),
        # and up before another resize: 41 x 30 becomes 82 x 60, 40 x 30 would become 82 x 62.
        ({"resize_short": 30, "resize_long": 82}, (27, 20), (82, 60)),
        ({"resize_to": (9, 31), "resize_long": 62}, (27, 20), (18, 62)),
    ],
)
def test_resizes_to_a_side(options: Any, before: tuple[int, int], after: tuple[int, int]) -> None:
    inside = Crops(Raw(), crop=(90, 90), **options)(*noise(*before), seeded())[1] != 255
    assert (int(inside[:, 0].sum()), int(inside[0].sum())) == after


def test_mean_padding_is_exactly_zero() -> None:
    crops = Crops(Normalise(MEAN, STD), crop=(4, 5), brightness=20)
    for seed in range(5):
        image, label = crops(*noise(2, 3), seeded(seed))
        assert (label[2:] == 255).all()
        assert (label[:, 3:] == 255).all()
        assert (image[:, 2:] == 0).all()
        assert (image[:, :, 3:] == 0).all()
        assert (label[:2, :3] == noise(2, 3)[1]).all()


def test_black_padding_is_normalised_black() -> None:
    crops = Crops(Normalise(MEAN, STD), crop=(4, 5), pad="black")
    image, label = crops(*noise(2, 3), seeded())
    outside = image[:, label == 255]
    assert outside.shape == (3, 14)
    expected = torch.tensor([-mean / std for mean, std in zip(MEAN, STD, strict=True)])
    assert (outside == expected[:, None]).all()
    assert torch.equal(image[:, :2, :3], Normalise(MEAN, STD)(noise(2, 3)[0]))


def test_black_padding_is_brightened_with_the_picture() -> None:
    crops = Crops(Raw(), crop=(1, 2), pad="black", brightness=40)
    grey = np.full((1, 1, 3), 100, dtype=np.uint8)
    shown = set()
    for seed in range(40):
        image = crops(grey, grey[..., 0], seeded(seed))[0]
        inside, outside = image[0, 0].tolist()
        assert outside == max(inside - 100, 0)
        shown.add(outside)
    assert len(shown) > 10


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("flip", ["before", "after"])
def test_mirror_pairs_change_places_exactly_when_mirrored(flip: Any, dtype: Any) -> None:
    label = np.array([[13, 14, 15, 16, 17, 18, 19, 255]], dtype=dtype)
    picture = np.broadcast_to(label[..., None].astype(np.uint8), (1, 8, 3)).copy()
    crops = Crops(Raw(), crop=(1, 9), flip=flip, mirror_pairs=LIP_PAIRS)
    seen = Counter()
    for seed in range(40):
        image, classes = crops(picture, label, seeded(seed))
        inside = image[0, 0] > 0
        values = image[0, 0][inside].int().tolist()
        swapped = classes[0][inside.numpy()].tolist()
        if values[0] == 13:
            assert values == swapped == label[0].tolist()
        else:
            assert values == [255, 19, 18, 17, 16, 15, 14, 13]
            assert swapped == [255, 18, 19, 16, 17, 14, 15, 13]
        assert classes[0][~inside.numpy()].tolist() == [255]
        assert classes.dtype == dtype
        seen[values[0]] += 1
    assert min(seen.values()) > 8
    np.testing.assert_array_equal(label, [[13, 14, 15, 16, 17, 18, 19, 255]])


CROPS = [
    Crops(Raw(), crop=(5, 6)),
    Crops(
        Raw(),
        crop=(7, 4),
        resize_short=8,
        scale_min=0.5,
        scale_max=2.0,
        aspect_min=0.9,
        aspect_max=1.1,
        rounding="down",
        interpolation="cubic",
        flip="before",
        brightness=10,
        pad_at="random",
    ),
    Crops(Raw(), crop=(5, 6), scale_min=0.5, scale_max=2.1, scale_step=0.1, pad="black"),
]


@pytest.mark.parametrize("crops", CROPS)
def test_equal_generators_give_equal_samples(crops: Crops) -> None:
    image = assert_repeatable(crops)
    others = [crops(*noise(11, 13), seeded(seed))[0] for seed in range(20)]
    assert not all(torch.equal(other, image) for other in others)


def test_options_do_not_change_how_many_numbers_are_drawn() -> None:
    following = [numbers_after(crops) for crops in CROPS]
    assert following[0] == following[1] == following[2]


def test_one_option_does_not_shift_others() -> None:
    for seed in range(20):
        plain = Crops(Raw(), crop=(6, 6), brightness=9)(*marked(15, 15), seeded(seed))
        for flip in ("none", "after"):
            crops = Crops(Raw(), crop=(6, 6), flip=flip)
            label = crops(*marked(15, 15), seeded(seed))[1]
            assert (label == plain[1]).all() or (label[:, ::-1] == plain[1]).all()


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"crop": (0, 4)}, "crop"),
        ({"crop": (4,)}, "crop"),
        ({"resize_short": 0}, "resize_short"),
        ({"resize_long": 0}, "resize_long"),
        ({"resize_to": (4, 0)}, "resize_to"),
        ({"resize_to": (4, 4), "resize_short": 4}, "resize_to"),
        ({"resize_long": 9, "aspect_max": 1.1}, "aspect_min and aspect_max"),
        ({"resize_long": 9, "rounding": "down"}, "rounding"),
        ({"scale_min": 0.0}, "scale_min and scale_max"),
        ({"scale_min": 2.0}, "scale_min and scale_max"),
        ({"scale_max": math.inf}, "scale_min and scale_max"),
        ({"scale_min": 0.5, "scale_max": 2.0, "scale_step": -0.1}, "scale_step"),
        ({"scale_min": 0.5, "scale_max": 2.05, "scale_step": 0.1}, "scale_step"),
        ({"aspect_min": 1.2}, "aspect_min and aspect_max"),
        ({"brightness": -1}, "brightness"),
        ({"brightness": 256}, "brightness"),
        ({"rounding": "up"}, "rounding"),
        ({"interpolation": "nearest"}, "interpolation"),
        ({"flip": True}, "flip"),
        ({"pad": "white"}, "pad"),
        ({"pad_at": "start"}, "pad_at"),
        ({"mirror_pairs": ((1, 2), (2, 3))}, "mirror_pairs"),
        ({"mirror_pairs": ((1, 255),)}, "mirror_pairs"),
        ({"mirror_pairs": ((1, 2, 3),)}, "mirror_pairs"),
        ({"mirror_pairs": ((-1, 2),)}, "mirror_pairs"),
        ({"ignore_index": -1}, "ignore_index"),
    ],
)
def test_crops_refuse(options: Any, argument: str) -> None:
    with pytest.raises(ValueError, match=f"^Crops: {argument} must .*, got "):
        Crops(Raw(), **{"crop": (4, 4), **options})
