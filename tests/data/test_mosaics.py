# SPDX-License-Identifier: MIT
"""Look-up mosaics: repeatable, exactly labelled, and flat regions that can be looked up."""

import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from ocnet.data import LookupMosaics, load_photo, mosaics_info
from ocnet.data import mosaics as module
from ocnet.data.mosaics import CLASSES_PER_IMAGE, TEXTURES, texture_halves

NOISE = 0.1
LEVELS = torch.tensor([-2.0, 0.0, 2.0])


@pytest.fixture
def _fresh_textures() -> Iterator[None]:
    texture_halves.cache_clear()
    yield
    texture_halves.cache_clear()


def test_samples_have_the_promised_form() -> None:
    dataset = LookupMosaics("val", size=48, length=3)
    assert len(dataset) == 3
    assert dataset.num_classes == len(TEXTURES) == 5
    for index in range(3):
        sample = dataset[index]
        assert (sample.image.dtype, sample.image.shape) == (torch.float32, (1, 48, 48))
        assert (sample.label.dtype, sample.label.shape) == (torch.int64, (48, 48))
        assert len(sample.label.unique()) == CLASSES_PER_IMAGE
        assert sample.label.min() >= 0
        assert sample.label.max() < 5
        assert sample.image.isfinite().all()


def test_a_sample_depends_on_seed_split_and_number_only() -> None:
    first = LookupMosaics("train", size=40, length=5, seed=3)
    second = LookupMosaics("train", size=40, length=9, seed=3)
    second[7], second.flat_mask(1)
    torch.rand(3)
    np.random.default_rng().random(3)
    for index in (4, 0):
        assert torch.equal(first[index].image, second[index].image)
        assert torch.equal(first[index].label, second[index].label)
        assert torch.equal(first.flat_mask(index), second.flat_mask(index))


@pytest.mark.parametrize(
    ("split", "seed", "index"), [("val", 3, 0), ("train", 4, 0), ("train", 3, 1)]
)
def test_another_seed_split_or_number_is_another_sample(split: Any, seed: int, index: int) -> None:
    one = LookupMosaics("train", size=40, length=2, seed=3)[0]
    other = LookupMosaics(split, size=40, length=2, seed=seed)[index]
    assert not torch.equal(one.image, other.image)
    assert not torch.equal(one.label, other.label)


def test_flat_pixels_hold_their_level_and_noise_only() -> None:
    dataset = LookupMosaics("train", size=64, length=20)
    seen = 0
    for index in range(20):
        sample, flat = dataset[index], dataset.flat_mask(index)
        for number in sample.label[flat].unique():
            pixels = sample.image[0][flat & (sample.label == number)].double()
            count = pixels.numel()
            if count < 50:
                continue
            seen += 1
            # Five standard errors of the mean and of the deviation of normal noise.
            level = LEVELS[(LEVELS - pixels.mean()).abs().argmin()]
            assert abs(pixels.mean() - level) < 5 * NOISE / math.sqrt(count)
            assert pixels.std() < NOISE * (1 + 5 / math.sqrt(2 * count))
    assert seen > 10


def test_textured_pixels_show_texture() -> None:
    dataset = LookupMosaics("train", size=64, length=20)
    deviations = []
    for index in range(20):
        sample, flat = dataset[index], dataset.flat_mask(index)
        for number in sample.label.unique():
            pixels = sample.image[0][~flat & (sample.label == number)]
            if pixels.numel() >= 200:
                deviations.append(float(pixels.std()))
    assert np.median(deviations) > 3 * NOISE


def test_every_flat_class_can_be_looked_up() -> None:
    dataset = LookupMosaics("train", size=64, length=100)
    for index in range(100):
        label, flat = dataset[index].label, dataset.flat_mask(index)
        assert set(label[flat].tolist()) <= set(label[~flat].tolist())


def test_pixel_groups_split_the_image() -> None:
    dataset = LookupMosaics("val", size=48, length=1)
    groups = dataset.pixel_groups(0)
    assert torch.equal(groups["flat"], dataset.flat_mask(0))
    assert torch.equal(groups["textured"], ~groups["flat"])


@pytest.mark.parametrize(("fraction", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_flat_fraction_is_that_of_the_free_regions(fraction: float, share: float) -> None:
    dataset = LookupMosaics("train", size=48, length=10, flat_fraction=fraction)
    flat = torch.stack([dataset.flat_mask(index) for index in range(10)]).float().mean()
    # Three of six to nine regions are never flat, so even with all others flat some are textured.
    assert flat == 0 if share == 0 else 0.3 < flat < 0.9


@pytest.mark.usefixtures("_fresh_textures")
def test_validation_never_shows_a_left_half(monkeypatch: pytest.MonkeyPatch) -> None:
    left = np.random.default_rng(0).integers(0, 255, (512, 256))

    def halved(name: str) -> Any:
        return np.hstack([left, np.full((512, 256), round(left.mean()))]).astype(np.uint8)

    monkeypatch.setattr(module, "bundled_picture", halved)
    for split, textured in (("train", True), ("val", False)):
        dataset = LookupMosaics(split, size=64, length=4, flat_fraction=0.0)  # type: ignore[arg-type]
        for index in range(4):
            sample = dataset[index]
            for number in sample.label.unique():
                pixels = sample.image[0][sample.label == number]
                assert (pixels.std() > 0.5) == textured


def test_halves_are_scaled_by_the_left_half() -> None:
    for left, right in zip(texture_halves("train"), texture_halves("val"), strict=True):
        assert left.shape == right.shape == (512, 256)
        # Sums of 131072 fp32 values, pairwise: errors of a few ulp of the deviation, 1.
        assert abs(left.mean(dtype=np.float64)) < 1e-4
        assert abs(left.std(dtype=np.float64) - 1) < 1e-4
        assert not np.array_equal(left, right)


def test_the_picture_transform_gives_a_photograph_the_range_of_a_mosaic() -> None:
    image = mosaics_info().picture_transform(load_photo("chelsea"))
    assert image.shape == (1, 300, 451)
    assert abs(float(image.mean())) < 1e-4
    assert abs(float(image.std()) - float(LEVELS.std(correction=0))) < 1e-3


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"split": "test"}, "split must be train or val, got test"),
        ({"size": 31}, "size must be 32 to 256, got 31"),
        ({"size": 257}, "size must be 32 to 256, got 257"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"flat_fraction": 1.5}, "flat_fraction must be 0 to 1, got 1.5"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^LookupMosaics: {complaint}"):
        LookupMosaics(**options)


@pytest.mark.parametrize("index", [-1, 4])
def test_a_sample_that_does_not_exist_is_refused(index: int) -> None:
    with pytest.raises(IndexError, match="index must be 0 to 3"):
        LookupMosaics("train", length=4)[index]


def test_largest_size_fits() -> None:
    assert LookupMosaics("val", size=256, length=1)[0].image.shape == (1, 256, 256)


@pytest.mark.usefixtures("_fresh_textures")
def test_without_scikit_image_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(RuntimeError, match=r'pip install "ocnet\[demo\]"'):
        LookupMosaics("train")
    with pytest.raises(RuntimeError, match=r'pip install "ocnet\[demo\]"'):
        load_photo("coffee")
