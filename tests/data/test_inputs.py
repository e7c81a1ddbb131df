# SPDX-License-Identifier: MIT
"""Normalisation against its formula, and the named inputs pixel by pixel."""

from typing import Any

import numpy as np
import pytest
import torch

from ocnet.data import INPUTS, Normalise, Standardise

EPS = np.finfo(np.float32).eps
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE = (102.9801, 115.9465, 122.7717)
CAFFE_LIP = (104.00698793, 116.66876762, 122.67891434)
ONES = (1.0, 1.0, 1.0)

# Of each named input: the channel of the picture that its channels are, what they are divided by, mean, std.
FORMULAS = {
    "imagenet": ((0, 1, 2), 255, MEAN, STD),
    "ocnet": ((0, 1, 2), 1, CAFFE, ONES),
    "openseg": ((2, 1, 0), 1, CAFFE, ONES),
    "openseg_lip": ((2, 1, 0), 1, CAFFE_LIP, ONES),
    "openseg_hrnet": ((2, 1, 0), 255, MEAN, STD),
    "ce2p": ((2, 1, 0), 255, MEAN, STD),
}


def picture(height: int = 9, width: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_named_inputs_are_those_of_the_table() -> None:
    assert set(INPUTS) == set(FORMULAS)


@pytest.mark.parametrize("name", FORMULAS)
def test_named_input_pixel_by_pixel(name: str) -> None:
    channels, unit, mean, std = FORMULAS[name]
    before = picture(4, 3)
    image = INPUTS[name](before)
    assert (image.dtype, image.shape) == (torch.float32, (3, 4, 3))
    assert image.is_contiguous()
    assert INPUTS[name].channels == 3
    for number, channel in enumerate(channels):
        for row in range(4):
            for column in range(3):
                value = int(before[row, column, channel])
                expected = (value / unit - mean[number]) / std[number]
                # Roundings of the four operands and of the three results.
                bound = 4 * EPS * (value / unit + mean[number]) / std[number]
                assert abs(float(image[number, row, column]) - expected) <= bound
    np.testing.assert_array_equal(before, picture(4, 3))


def test_pure_red_tells_the_orders_apart() -> None:
    red = np.zeros((1, 1, 3), dtype=np.uint8)
    red[..., 0] = 255
    shown = {name: INPUTS[name](red)[:, 0, 0].tolist() for name in INPUTS}
    assert shown["ocnet"] == pytest.approx([255 - 102.9801, -115.9465, -122.7717])
    assert shown["openseg"] == pytest.approx([-102.9801, -115.9465, 255 - 122.7717])
    assert shown["imagenet"] == pytest.approx([0.515 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    assert shown["ce2p"] == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, 0.594 / 0.225])
    assert shown["openseg_hrnet"] == shown["ce2p"]


def test_normalise_colour() -> None:
    image = Normalise(MEAN, STD)(picture())
    expected = ((picture() / 255.0 - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1)
    assert image.dtype == torch.float32
    # Three roundings of numbers up to 1 / std.
    np.testing.assert_allclose(image.numpy(), expected, rtol=0, atol=4 * EPS / min(STD))


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_normalise_grey(order: Any) -> None:
    transform = Normalise((0.5,), (0.25,), order=order)
    image = transform(picture())
    grey = picture() @ np.array([0.299, 0.587, 0.114]) / 255
    assert transform.channels == 1
    assert image.shape == (1, 9, 7)
    np.testing.assert_allclose(image[0].numpy(), (grey - 0.5) / 0.25, rtol=0, atol=8 * EPS / 0.25)


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
        ((0.5,), (0.0,), "std must be greater than 0"),
    ],
)
def test_normalise_refuses(mean: tuple[float, ...], std: tuple[float, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^Normalise: .*{complaint}"):
        Normalise(mean, std)


@pytest.mark.parametrize("options", [{"order": "grb"}, {"unit": 0.0}, {"unit": -255.0}])
def test_normalise_refuses_options(options: Any) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"^Normalise: {name} must be .*, got {options[name]}$"):
        Normalise(MEAN, STD, **options)


@pytest.mark.parametrize(("channels", "deviation"), [(2, 1.0), (1, 0.0)])
def test_standardise_refuses(channels: int, deviation: float) -> None:
    with pytest.raises(ValueError, match=r"^Standardise: "):
        Standardise(channels, deviation)


@pytest.mark.parametrize("transform", [Standardise(1), INPUTS["openseg"]])
@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4)])
def test_transforms_take_rgb_only(transform: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"picture must be \(H, W, 3\) uint8"):
        transform(np.zeros(shape, dtype=np.uint8))
