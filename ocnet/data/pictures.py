# SPDX-License-Identifier: MIT
"""Picture files: reading any picture, writing class maps and overlays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ocnet.data.base import RGB
from ocnet.data.labels import IGNORE_INDEX

# What Pillow raises for damaged files of all kinds.
_UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError)


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read any picture that Pillow reads, upright and as RGB.

    Args:
        path: picture file. Its EXIF orientation is applied, transparency dropped, and 16-bit
            grey scaled to 8 bits.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a picture.
    """
    if not path.is_file():
        raise FileNotFoundError(f"read_picture: path must name a file, got {path}")
    try:
        with Image.open(path) as opened:
            picture: Image.Image = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I"):
                # Pillow clips 16-bit grey at 255 when it converts to RGB.
                deep = np.asarray(picture).astype(np.float32) / 257
                picture = Image.fromarray(np.rint(deep.clip(0, 255)).astype(np.uint8))
            return np.array(picture.convert("RGB"))
    except _UNREADABLE as error:
        raise ValueError(f"read_picture: path must name a picture, got {path} ({error})") from error


def read_label(path: Path) -> NDArray[Any]:
    """Read a label file as it is.

    Args:
        path: PNG with one channel, 8 or 16 bits (one with a palette counts by its indices), or a MATLAB file
            with the matrix ``S`` or ``LabelMap``, which need ``scipy``.

    Returns:
        ``(H, W)`` uint8 or uint16.

    Raises:
        ValueError: the file is no label.
        RuntimeError: a MATLAB file, and scipy is not installed.
    """
    if path.suffix.lower() == ".mat":
        return _read_matlab(path)
    try:
        with Image.open(path) as opened:
            mode = opened.mode
            label = np.array(opened)
    except _UNREADABLE as error:
        raise ValueError(f"dataset: label must be a PNG, got {path} ({error})") from error
    if mode == "1":
        return label.astype(np.uint8)
    if mode in ("L", "P"):
        return label
    if mode.startswith("I") and label.min() >= 0 and label.max() <= np.iinfo(np.uint16).max:
        return label.astype(np.uint16)
    raise ValueError(
        f"dataset: label must be a PNG with one channel of class numbers, got mode {mode} in {path}"
    )


def _read_matlab(path: Path) -> NDArray[Any]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise RuntimeError(
            f"dataset: MATLAB labels such as {path.name} need scipy, which is missing; install it with: "
            'pip install "ocnet[matlab]"'
        ) from error
    try:
        content = loadmat(str(path))
    # What loadmat raises for files that are none is of every kind.
    except Exception as error:
        raise ValueError(f"dataset: label must be a MATLAB file, got {path} ({error})") from error
    for name in ("S", "LabelMap"):
        if name in content and content[name].ndim == 2:
            return np.asarray(content[name]).astype(np.uint16)
    raise ValueError(f"dataset: label must have a matrix S or LabelMap, got {path} without one")


def write_class_map(path: Path, classes: NDArray[np.int64], palette: Sequence[RGB]) -> None:
    """Write class numbers as a palette PNG: right values for programs, colours for people.

    Args:
        path: PNG file to write.
        classes: ``(H, W)``, each 0 to ``len(palette) - 1`` or the ignore value, which is black.
        palette: one colour per class, at most 255.

    Raises:
        ValueError: the palette has more than 255 colours.
    """
    if len(palette) > IGNORE_INDEX:
        raise ValueError(
            f"write_class_map: palette must have at most {IGNORE_INDEX} colours, got {len(palette)}"
        )
    picture = Image.fromarray(classes.astype(np.uint8))
    # All 256 entries: with fewer, Pillow saves fewer bits per pixel and cuts the ignore value off.
    black = [0, 0, 0] * (256 - len(palette))
    picture.putpalette([part for colour in palette for part in colour] + black)
    picture.save(path, format="PNG")


def overlay(
    picture: NDArray[np.uint8],
    classes: NDArray[np.int64],
    palette: Sequence[RGB],
    opacity: float = 0.5,
) -> NDArray[np.uint8]:
    """Lay the colours of the classes over a picture.

    Args:
        picture: ``(H, W, 3)`` uint8.
        classes: ``(H, W)``, each 0 to ``len(palette) - 1``.
        palette: one colour per class.
        opacity: 0 shows the picture only, 1 the colours only.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    colours = np.array(palette, dtype=np.float32)[classes]
    return np.rint((1 - opacity) * picture + opacity * colours).astype(np.uint8)
