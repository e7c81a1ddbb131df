# SPDX-License-Identifier: MIT
"""How the tables of names and colours are written down."""

from __future__ import annotations

from ocnet.data.base import RGB


def names(text: str) -> tuple[str, ...]:
    """Return names that commas separate, over any number of lines."""
    return tuple(" ".join(name.split()) for name in text.split(","))


def colours(text: str) -> tuple[RGB, ...]:
    """Return colours that are written as six hexadecimal digits, with spaces between."""
    return tuple(_colour(digits) for digits in text.split())


def _colour(digits: str) -> RGB:
    red, green, blue = bytes.fromhex(digits)
    return red, green, blue


def bit_colours(count: int) -> tuple[RGB, ...]:
    """Return the first colours of the PASCAL VOC palette, which makes 256 different ones.

    Args:
        count: how many, at most 256. Number 0 is black.

    Returns:
        The bits of a number go round red, green and blue, the lowest three to their highest bits.

    Source:
        ``VOClabelcolormap.m`` of the VOC devkit; written anew.
    """
    palette = []
    for number in range(count):
        channels = [0, 0, 0]
        for bit in range(8):
            channels[bit % 3] |= (number >> bit & 1) << (7 - bit // 3)
        palette.append((channels[0], channels[1], channels[2]))
    return tuple(palette)
