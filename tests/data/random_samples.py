# SPDX-License-Identifier: MIT
"""What tests of random samples share: pictures, generators, and checks of distributions."""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import cv2
import numpy as np
import torch

# Chance, for correct code, that a test of a distribution fails.
FAILURE = 1e-6
DRAWS = 2000
LIP_PAIRS = ((14, 15), (16, 17), (18, 19))
OCNET_SCALES = [0.5 + tenth / 10 for tenth in range(17)]


class Raw:
    """Network input that is the picture itself, red, green, blue, 0 to 255."""

    channels = 3

    def __call__(self, picture: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)


def numbers_after(crops: Callable[..., Any]) -> list[float]:
    """Return what a generator draws once a sample has been drawn from it."""
    generator = seeded(5)
    crops(*noise(11, 13), generator)
    numbers: list[float] = torch.rand(3, generator=generator).tolist()
    return numbers


def assert_repeatable(crops: Callable[..., Any]) -> torch.Tensor:
    """Draw twice with equal generators, whatever the global ones say; return the image."""
    for seed in range(5):
        torch.manual_seed(seed)
        random.seed(seed)
        cv2.setRNGSeed(seed)
        one, two = crops(*noise(11, 13), seeded(7)), crops(*noise(11, 13), seeded(7))
        assert torch.equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])
    image: torch.Tensor = one[0]
    return image


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def marked(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture whose red and green number its pixels, as the label does."""
    label = np.arange(height * width, dtype=np.uint16).reshape(height, width)
    return np.stack([label % 256, label // 256, label % 7], axis=-1).astype(np.uint8), label


def noise(height: int, width: int, classes: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(height * 1000 + width)
    picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return picture, rng.integers(0, classes, (height, width), dtype=np.uint8)


def check_uniform(found: list[Any], expected: list[Any]) -> None:
    """Check that all of ``expected``, and nothing else, was found equally often.

    Laurent and Massart (2000), lemma 1: chi-square of ``k`` degrees of freedom is above
    ``k + 2 sqrt(k t) + 2 t`` with a chance below ``exp(-t)``.
    """
    counts = Counter(found)
    assert set(counts) == set(expected)
    mean = len(found) / len(expected)
    statistic = sum((counts[value] - mean) ** 2 for value in expected) / mean
    freedom, t = len(expected) - 1, -math.log(FAILURE)
    assert statistic <= freedom + 2 * math.sqrt(freedom * t) + 2 * t


def check_law(
    low: Sequence[float],
    high: Sequence[float],
    law: Callable[[float], float],
    points: Iterable[float],
) -> None:
    """Check that numbers known to be between ``low`` and ``high`` have the distribution function ``law``.

    Dvoretzky, Kiefer and Wolfowitz, with the constant of Massart (1990): the empirical distribution
    function is further than ``sqrt(log(2 / p) / 2 n)`` from the true one with a chance below ``p``.
    """
    bound = math.sqrt(math.log(2 / FAILURE) / (2 * len(low)))
    for point in points:
        at_most = np.mean(np.array(low) <= point)
        at_least = np.mean(np.array(high) <= point)
        assert at_least - bound <= law(point) <= at_most + bound, point
