# SPDX-License-Identifier: MIT
"""CE2P's affine crops, pixel by pixel and in distribution; and both kinds of crops on files."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ocnet.data import (
    INPUTS,
    AffineCrops,
    Augmentation,
    Crops,
    DatasetInfo,
    Entry,
    Normalise,
    PictureFiles,
    distinct_colours,
)
from tests.data.random_samples import (
    DRAWS,
    LIP_PAIRS,
    Raw,
    assert_repeatable,
    check_law,
    check_uniform,
    marked,
    noise,
    numbers_after,
    seeded,
)

OUTSIDE = 65535
CROPS = [
    AffineCrops(Raw(), crop=(5, 6)),
    AffineCrops(Raw(), crop=(5, 6), scale=0, rotation=0, flip=False),
    AffineCrops(Raw(), crop=(5, 6), rotation_probability=0),
]


def normal(point: float) -> float:
    """Return the distribution function of the standard normal distribution."""
    return (1 + math.erf(point / math.sqrt(2))) / 2


def restated_draws(crops: AffineCrops, seed: int) -> tuple[float, float, bool]:
    """Return factor, angle and whether the sample is mirrored: two normal numbers, then two uniform ones."""
    generator = seeded(seed)
    scale, angle = torch.randn(2, generator=generator, dtype=torch.float64).tolist()
    turn, flip = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    sf, rf = crops.scale, crops.rotation
    factor = float(np.clip(scale * sf + 1, 1 - sf, 1 + sf))
    degrees = float(np.clip(angle * rf, -2 * rf, 2 * rf)) if turn < 0.6 else 0.0
    return factor, degrees, flip < 0.5


def sampled_at(
    crop: tuple[int, int], height: int, width: int, factor: float, degrees: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column of the picture that each pixel of the crop shows, ``(*crop)`` each."""
    rows, columns = crop
    w, h = width - 1.0, height - 1.0
    if w > columns / rows * h:
        h = w / (columns / rows)
    else:
        w = h * (columns / rows)
    assert w / h == pytest.approx(columns / rows)
    down, right = np.mgrid[:rows, :columns] + 0.0
    down, right = (
        (down - rows / 2) * h * factor / rows,
        (right - columns / 2) * w * factor / columns,
    )
    turn = math.radians(degrees)
    # With rows downwards, this turns clockwise.
    x = (width - 1) / 2 + right * math.cos(turn) - down * math.sin(turn)
    y = (height - 1) / 2 + right * math.sin(turn) + down * math.cos(turn)
    return y, x


def bilinear(picture: np.ndarray, y: float, x: float) -> tuple[np.ndarray, float]:
    """Return the colour at a place, black outside, and how much neighbours there differ."""
    top, left = math.floor(y), math.floor(x)
    corners = np.zeros((2, 2, picture.shape[2]))
    for down in (0, 1):
        for right in (0, 1):
            if 0 <= top + down < picture.shape[0] and 0 <= left + right < picture.shape[1]:
                corners[down, right] = picture[top + down, left + right]
    below, beside = y - top, x - left
    weights = np.outer((1 - below, below), (1 - beside, beside))
    steps = np.abs(np.diff(corners, axis=0)).max() + np.abs(np.diff(corners, axis=1)).max()
    return (weights[..., None] * corners).sum(axis=(0, 1)), float(steps)


@pytest.mark.parametrize(("height", "width"), [(23, 31), (31, 12)])
def test_pixels_one_by_one(height: int, width: int) -> None:
    picture, label = noise(height, width)[0], marked(height, width)[1]
    crops = AffineCrops(Raw(), crop=(18, 14), ignore_index=OUTSIDE)
    kinds = set()
    for seed in range(12):
        factor, degrees, mirrored = restated_draws(crops, seed)
        kinds.add((mirrored, degrees == 0))
        seen = (picture[:, ::-1], label[:, ::-1]) if mirrored else (picture, label)
        image, classes = crops(picture, label, seeded(seed))
        assert (image.shape, classes.shape) == ((3, 18, 14), (18, 14))
        assert classes.dtype == np.uint16
        rows, columns = sampled_at((18, 14), height, width, factor, degrees)
        for place in np.ndindex(18, 14):
            y, x = float(rows[place]), float(columns[place])
            colour, steps = bilinear(seen[0], y, x)
            # Half a level, and places that OpenCV before version 5 rounds to 1/32 of a pixel.
            difference = np.abs(image[:, place[0], place[1]].numpy() - colour).max()
            assert difference <= 0.51 + steps / 64
            if min(abs(y % 1 - 0.5), abs(x % 1 - 0.5)) < 0.002:
                continue  # as near to the next pixel
            inside = 0 <= round(y) < height and 0 <= round(x) < width
            assert classes[place] == (seen[1][round(y), round(x)] if inside else OUTSIDE)
    assert len(kinds) == 4


def test_scale_and_rotation_laws() -> None:
    """Both are read off samples of a picture whose colours are the coordinates."""
    side, crop, draws = 64, 20, 3 * DRAWS
    ramp = np.arange(side, dtype=np.uint8) * 4
    picture = np.zeros((side, side, 3), dtype=np.uint8)
    picture[..., 0], picture[..., 1] = ramp[None, :], ramp[:, None]
    label = np.zeros((side, side), dtype=np.uint8)
    label[2:-2, 2:-2] = 1  # where no colour of the border comes in
    crops = AffineCrops(Raw(), crop=(crop, crop), flip=False)
    generator = seeded()
    factors, angles = [], []
    for _ in range(draws):
        image, classes = crops(picture, label, generator)
        rows, columns = np.nonzero(classes == 1)
        places = np.stack([columns - crop / 2, rows - crop / 2, np.ones(len(rows))])
        solve = np.linalg.pinv(places)
        shown = image[:2, rows, columns].numpy() / 4
        # Column and row of the picture, by the column of the crop.
        along, across = shown @ solve[:, 0]
        # Colours are off by half a level, a quarter of that in pixels, and places by 1/64.
        error = (0.125 + 1 / 64) * np.abs(solve[:, 0]).sum() * math.sqrt(2)
        unit = (side - 1) / crop
        length = math.hypot(along, across)
        factors.append(((length - error) / unit, (length + error) / unit))
        turn, off = math.degrees(math.atan2(across, along)), math.degrees(error / length) * 1.01
        angles.append((turn - off, turn + off))

    def factor_law(point: float) -> float:
        return 0 if point < 0.75 else 1 if point >= 1.25 else normal((point - 1) / 0.25)

    def angle_law(point: float) -> float:
        drawn = 0 if point < -60 else 1 if point >= 60 else normal(point / 30)
        return 0.6 * drawn + 0.4 * (point >= 0)

    widest = max(high - low for low, high in factors)
    assert widest < 0.05
    check_law(*zip(*factors, strict=True), factor_law, np.linspace(0.7, 1.3, 61))
    check_law(*zip(*angles, strict=True), angle_law, np.linspace(-65, 65, 131))


def test_half_of_the_samples_are_mirrored() -> None:
    crops = AffineCrops(Raw(), crop=(2, 2), scale=0, rotation=0)
    picture, label = marked(3, 3)
    generator = seeded()
    found = [tuple(crops(picture, label, generator)[1].ravel().tolist()) for _ in range(4 * DRAWS)]
    plain = (0, 1, 3, 4)
    check_uniform(found, [plain, (2, 1, 5, 4)])
    fixed = AffineCrops(Raw(), crop=(2, 2), scale=0, rotation=0, flip=False)
    assert {tuple(fixed(picture, label, generator)[1].ravel().tolist()) for _ in range(40)} == {
        plain
    }


def test_surroundings_are_normalised_black() -> None:
    mean, std = (0.5, 0.25, 0.125), (0.25, 0.5, 1.0)
    crops = AffineCrops(Normalise(mean, std), crop=(8, 32), scale=0, rotation=0)
    image, label = crops(*noise(9, 9), seeded())
    outside = image[:, label == 255]
    assert outside.shape[1] > 100
    black = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])
    # Pixels beside the picture may have some of it.
    beside = (outside != black[:, None]).any(dim=0).sum()
    assert beside <= 2 * 8
    assert (image[:, :, 0] == black[:, None]).all()
    assert (image[:, label != 255] != black[:, None]).any(dim=0).all()


def test_mirror_pairs_change_places_exactly_when_mirrored() -> None:
    label = np.array([[13] * 5 + [14] * 5 + [15] * 5], dtype=np.uint8).repeat(15, axis=0)
    picture = label[..., None].repeat(3, axis=2)
    crops = AffineCrops(
        Raw(), crop=(30, 30), scale=0, rotation_probability=0, mirror_pairs=LIP_PAIRS
    )
    orders = set()
    for seed in range(20):
        image, classes = crops(picture, label, seeded(seed))
        shown = image[0, 15, [3, 15, 26]].int().tolist()
        orders.add((*shown, *classes[15, [3, 15, 26]].tolist()))
    assert orders == {(13, 14, 15, 13, 14, 15), (15, 14, 13, 14, 15, 13)}


@pytest.mark.parametrize("crops", CROPS)
def test_equal_generators_give_equal_samples(crops: AffineCrops) -> None:
    image = assert_repeatable(crops)
    others = [crops(*noise(11, 13), seeded(seed))[0] for seed in range(20)]
    assert all(torch.equal(other, image) for other in others) == (crops is CROPS[1])


def test_options_do_not_change_how_many_numbers_are_drawn() -> None:
    following = [numbers_after(crops) for crops in CROPS]
    assert following[0] == following[1] == following[2]


def test_one_pixel_is_a_picture() -> None:
    image, label = CROPS[0](*marked(1, 1), seeded())
    assert image.isfinite().all()
    assert set(np.unique(label)) <= {0, 255}


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"crop": (4, 0)}, "crop"),
        ({"scale": 1.0}, "scale"),
        ({"scale": -0.1}, "scale"),
        ({"rotation": -1.0}, "rotation"),
        ({"rotation": 91.0}, "rotation"),
        ({"rotation_probability": 1.5}, "rotation_probability"),
        ({"mirror_pairs": ((1, 1),)}, "mirror_pairs"),
        ({"ignore_index": 65536}, "ignore_index"),
    ],
)
def test_affine_crops_refuse(options: Any, argument: str) -> None:
    with pytest.raises(ValueError, match=f"^AffineCrops: {argument} must .*, got "):
        AffineCrops(Raw(), **{"crop": (4, 4), **options})


PEOPLE = {
    "ce2p": AffineCrops(INPUTS["ce2p"], crop=(40, 40), mirror_pairs=LIP_PAIRS),
    "openseg": Crops(
        INPUTS["openseg_lip"],
        crop=(40, 40),
        resize_to=(40, 40),
        scale_min=0.5,
        scale_max=1.5,
        aspect_min=0.9,
        aspect_max=1.1,
        rounding="down",
        interpolation="cubic",
        flip="before",
        brightness=10,
        pad_at="random",
        mirror_pairs=LIP_PAIRS,
    ),
    "hrnet": Crops(
        INPUTS["imagenet"],
        crop=(40, 40),
        resize_to=(40, 40),
        resize_long=40,
        scale_min=0.5,
        scale_max=1.6,
        scale_step=0.1,
        flip="before",
        pad="black",
        mirror_pairs=LIP_PAIRS,
    ),
}


@pytest.mark.parametrize("name", PEOPLE)
def test_people_from_files(name: str, tmp_path: Path) -> None:
    """A red left arm and a blue right one: mirrored, the left one is blue, and still on the same side."""
    picture = np.full((50, 34, 3), 128, dtype=np.uint8)
    label = np.zeros((50, 34), dtype=np.uint8)
    for classes, columns, colour in (
        (14, slice(3, 15), (255, 0, 0)),
        (15, slice(19, 31), (0, 0, 255)),
    ):
        picture[10:40, columns], label[10:40, columns] = colour, classes
    Image.fromarray(picture).save(tmp_path / "1.png")
    Image.fromarray(label).save(tmp_path / "1_label.png")
    augmentation: Augmentation = PEOPLE[name]
    transform = PEOPLE[name].transform
    info = DatasetInfo(
        tuple(f"part {number}" for number in range(20)),
        transform,
        distinct_colours(20),
        mirror_pairs=LIP_PAIRS,
    )
    entries = [Entry(tmp_path / "1.png", tmp_path / "1_label.png", "1")]
    people = PictureFiles(entries, info, augmentation)
    red_and_blue = (0, 2) if name == "hrnet" else (2, 0)
    mirrored = set()
    for seed in range(40):
        sample = people.draw(0, seeded(seed))
        assert (sample.image.shape, sample.label.shape) == ((3, 40, 40), (40, 40))
        assert set(sample.label.unique().tolist()) <= {0, 14, 15, 255}
        shown = {}
        for arm in (14, 15):
            inside = sample.label == arm
            if inside.sum() < 30:
                break
            red, blue = (float(sample.image[channel][inside].mean()) for channel in red_and_blue)
            shown[arm] = (float(inside.nonzero()[:, 1].float().mean()), red > blue)
        else:
            assert shown[14][0] < shown[15][0]
            assert shown[14][1] != shown[15][1]
            mirrored.add(shown[14][1])
    assert mirrored == {True, False}
    assert people[0].image.shape == (3, 50, 34)
