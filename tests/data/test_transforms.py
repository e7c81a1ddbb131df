# SPDX-License-Identifier: MIT
"""Normalisation against its formula, and augmentation that moves picture and label together."""

import numpy as np
import pytest
import torch

from ocnet.data import Augment, Normalise, Standardise

EPS = np.finfo(np.float32).eps
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(height: int = 9, width: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_normalise_colour() -> None:
    image = Normalise(MEAN, STD)(picture())
    expected = ((picture() / 255.0 - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1)
    assert image.dtype == torch.float32
    # Three roundings of numbers up to 1 / std.
    np.testing.assert_allclose(image.numpy(), expected, rtol=0, atol=4 * EPS / min(STD))


def test_normalise_grey() -> None:
    image = Normalise((0.5,), (0.25,))(picture())
    grey = picture() @ np.array([0.299, 0.587, 0.114]) / 255
    assert image.shape == (1, 9, 7)
    np.testing.assert_allclose(image[0].numpy(), (grey - 0.5) / 0.25, rtol=0, atol=8 * EPS / 0.25)


def test_fill_colour_comes_out_near_zero() -> None:
    normalise = Normalise(MEAN, STD)
    image = normalise(np.broadcast_to(normalise.fill, (2, 2, 3)))
    assert image.abs().max() <= 0.5 / 255 / min(STD) + 8 * EPS


@pytest.mark.parametrize("channels", [1, 3])
def test_standardise(channels: int) -> None:
    transform = Standardise(channels, 1.5)
    image = transform(picture()).double()
    assert transform.channels == channels == image.shape[0]
    assert abs(float(image.mean())) < 1e-4
    assert abs(float(image.std(correction=0)) - 1.5) < 1e-4


def test_standardise_of_one_colour_is_zero() -> None:
    image = Standardise(1)(np.full((40, 30, 3), 201, dtype=np.uint8))
    assert image.abs().max() < 1e-3


@pytest.mark.parametrize(
    ("mean", "std", "complaint"),
    [
        ((0.5, 0.5), (1.0, 1.0), "1 or 3 values"),
        ((0.5,), (1.0, 1.0, 1.0), "1 or 3 values"),
        ((0.5,), (0.0,), "greater than 0"),
    ],
)
def test_normalise_refuses(mean: tuple[float, ...], std: tuple[float, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Normalise(mean, std)


@pytest.mark.parametrize(("channels", "deviation"), [(2, 1.0), (1, 0.0)])
def test_standardise_refuses(channels: int, deviation: float) -> None:
    with pytest.raises(ValueError, match=r"^Standardise: "):
        Standardise(channels, deviation)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4)])
def test_transforms_take_rgb_only(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"picture must be \(H, W, 3\) uint8"):
        Standardise(1)(np.zeros(shape, dtype=np.uint8))


def augment(crop: int, scales: tuple[float, float] = (1.0, 1.0), flip: bool = False) -> Augment:
    return Augment(crop, scales, flip, np.array([1, 2, 3], dtype=np.uint8), 255)


def marked(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture whose red is the label, different in each pixel."""
    label = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    return np.stack([label, label // 2, 255 - label], axis=-1), label


def test_crops_move_picture_and_label_together() -> None:
    corners = set()
    flips = set()
    for seed in range(60):
        colours, classes = augment(6, flip=True)(
            *marked(12, 20), torch.Generator().manual_seed(seed)
        )
        assert colours.shape == (6, 6, 3)
        np.testing.assert_array_equal(colours[..., 0], classes)
        steps = np.diff(classes.astype(int), axis=1)
        assert set(steps.ravel()) in ({1}, {-1})
        flips.add(int(steps[0, 0]))
        corners.add(int(classes.min()))
    assert flips == {1, -1}
    assert len(corners) > 20


def test_every_place_of_a_crop_can_come() -> None:
    lefts = {
        int(augment(4)(*marked(4, 6), torch.Generator().manual_seed(seed))[1][0, 0])
        for seed in range(40)
    }
    assert lefts == {0, 1, 2}


def test_small_pictures_are_padded_at_right_and_bottom() -> None:
    colours, classes = augment(8)(*marked(5, 6), torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(classes[:5, :6], marked(5, 6)[1])
    assert (classes[5:] == 255).all()
    assert (classes[:, 6:] == 255).all()
    assert (colours[5:] == [1, 2, 3]).all()
    assert (colours[:, 6:] == [1, 2, 3]).all()


def test_scale_enlarges_both_and_keeps_labels_whole() -> None:
    label = np.zeros((8, 8), dtype=np.uint16)
    label[:, 4:] = 300
    colours = np.where(label[..., None] > 0, 200, 10).astype(np.uint8).repeat(3, axis=2)
    big, classes = augment(16, (2.0, 2.0))(colours, label, torch.Generator().manual_seed(0))
    assert set(classes.ravel()) == {0, 300}
    np.testing.assert_array_equal(classes[:, 8:] == 300, True)
    np.testing.assert_array_equal(big[:, 10:], 200)
    np.testing.assert_array_equal(big[:, :6], 10)


def test_equal_generators_give_equal_crops() -> None:
    cut = augment(5, (0.5, 2.0), flip=True)
    one = cut(*marked(11, 13), torch.Generator().manual_seed(7))
    two = cut(*marked(11, 13), torch.Generator().manual_seed(7))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])


@pytest.mark.parametrize(("crop", "scales"), [(0, (1.0, 1.0)), (4, (0.0, 1.0)), (4, (2.0, 1.0))])
def test_augment_refuses(crop: int, scales: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"^Augment: "):
        augment(crop, scales)
