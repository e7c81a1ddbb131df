# SPDX-License-Identifier: MIT
"""The steps that random crops are made of. None of them draws a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Interpolation = Literal["linear", "cubic"]
Pairs = tuple[tuple[int, int], ...]
Pair = tuple[NDArray[np.uint8], NDArray[Any]]

_INTERPOLATIONS: Mapping[str, int] = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}


@dataclass(frozen=True)
class Span:
    """Which rows (or columns) of a picture come to lie where in a crop.

    Attributes:
        source: of the picture.
        target: of the crop; less than all of it where the picture is too small.
    """

    source: slice
    target: slice


def place(length: int, crop: int, draw: float, shift_padding: bool) -> Span:
    """Lay a crop over a picture, in one of the two directions.

    Args:
        length: pixels of the picture.
        crop: pixels of the crop.
        draw: 0 to below 1; all places of a crop in the picture share this range evenly, and so do all places
            of a small picture in the crop.
        shift_padding: a small picture lies at any place of the crop, not at its start.

    Returns:
        As many pixels of one as of the other.
    """
    kept = min(length, crop)
    start = int(draw * (abs(length - crop) + 1))
    first = start if length > crop else 0
    into = start if length < crop and shift_padding else 0
    return Span(slice(first, first + kept), slice(into, into + kept))


def fitted(height: int, width: int, target: int, reference: int) -> tuple[int, int]:
    """Return rows and columns once ``reference`` pixels are ``target``, halves rounded up (HRNet)."""
    return _halves_up(height * target / reference), _halves_up(width * target / reference)


def multiplied(height: int, width: int, factor: float) -> tuple[int, int]:
    """Return rows and columns times ``factor``, halves rounded to even (openseg)."""
    return max(1, round(height * factor)), max(1, round(width * factor))


def long_side(target: int, scale: float) -> int:
    """Return ``target`` times ``scale``, halves rounded up (HRNet)."""
    return _halves_up(target * scale)


def _halves_up(number: float) -> int:
    return max(1, int(number + 0.5))


def resize(
    picture: NDArray[np.uint8],
    label: NDArray[Any],
    size: tuple[int, int],
    interpolation: Interpolation,
) -> Pair:
    """Return both with ``size`` rows and columns; the label takes the nearest pixel."""
    shape = (size[1], size[0])
    return (
        cv2.resize(picture, shape, interpolation=_INTERPOLATIONS[interpolation]),
        cv2.resize(label, shape, interpolation=cv2.INTER_NEAREST),
    )


def resize_by(
    picture: NDArray[np.uint8],
    label: NDArray[Any],
    factors: tuple[float, float],
    interpolation: Interpolation,
) -> Pair:
    """Return both with rows and columns times ``factors``, rounded to the nearest by OpenCV.

    Pixels are ``1 / factor`` apart in the picture, which is not quite what the rounded sizes would give.
    """
    # One pixel at least.
    y, x = (max(factor, 1 / side) for factor, side in zip(factors, label.shape, strict=True))
    return (
        cv2.resize(picture, None, fx=x, fy=y, interpolation=_INTERPOLATIONS[interpolation]),
        cv2.resize(label, None, fx=x, fy=y, interpolation=cv2.INTER_NEAREST),
    )


def mirror_picture(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture with left and right exchanged."""
    return np.ascontiguousarray(picture[:, ::-1])


def mirror_label(label: NDArray[Any], pairs: Pairs) -> NDArray[Any]:
    """Return a label with left and right exchanged, and with the classes of each pair exchanged."""
    mirrored = np.ascontiguousarray(label[:, ::-1])
    if not pairs:
        return mirrored
    table = np.arange(np.iinfo(label.dtype).max + 1, dtype=label.dtype)
    for one, other in pairs:
        table[one], table[other] = other, one
    exchanged: NDArray[Any] = table[mirrored]
    return exchanged


def brighten(picture: NDArray[np.uint8], shift: int) -> NDArray[np.uint8]:
    """Return a picture with ``shift`` added to each value, which stays within 0 to 255."""
    if shift == 0:
        return picture
    return (picture.astype(np.int16) + shift).clip(0, 255).astype(np.uint8)


def require(function: str, argument: str, fulfilled: bool, requirement: str, value: object) -> None:
    """Raise ``ValueError`` in the usual words where a requirement is not fulfilled."""
    if not fulfilled:
        raise ValueError(f"{function}: {argument} must {requirement}, got {value}")


def require_frame(function: str, crop: tuple[int, int], pairs: Pairs, ignore_index: int) -> None:
    """Check what all random crops have: their size, and which labels change places."""
    require(
        function,
        "crop",
        len(crop) == 2 and min(crop) >= 1,
        "be rows and columns, at least 1 each",
        crop,
    )
    largest = np.iinfo(np.uint16).max
    require(
        function,
        "ignore_index",
        0 <= ignore_index <= largest,
        f"be 0 to {largest}",
        ignore_index,
    )
    classes = [number for pair in pairs for number in pair]
    require(
        function,
        "mirror_pairs",
        all(len(pair) == 2 for pair in pairs)
        and len(set(classes)) == len(classes)
        and all(0 <= number <= largest and number != ignore_index for number in classes),
        "be pairs of classes, none of them twice",
        pairs,
    )
