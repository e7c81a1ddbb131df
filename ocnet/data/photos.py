# SPDX-License-Identifier: MIT
"""Real photographs without internet: the ones that ship inside scikit-image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Photo:
    """What is known about a photograph.

    Attributes:
        title: what it shows.
        licence: who made it and what may be done with it, as scikit-image's documentation says.
    """

    title: str
    licence: str


PHOTOS: Mapping[str, Photo] = MappingProxyType(
    {
        "astronaut": Photo("Eileen Collins", "NASA, public domain"),
        "coffee": Photo("a cup of coffee", "Rachel Michetti, CC0"),
        "chelsea": Photo("Chelsea the cat", "Stefan van der Walt, CC0"),
        "rocket": Photo("launch of DSCOVR on a Falcon 9", "SpaceX, public domain"),
    }
)
"""The colour photographs that :func:`load_photo` knows."""


def load_photo(name: str) -> NDArray[np.uint8]:
    """Return one of the photographs in :data:`PHOTOS`.

    Args:
        name: a key of :data:`PHOTOS`.

    Returns:
        ``(H, W, 3)`` uint8, red, green, blue.

    Raises:
        ValueError: there is no photograph of that name.
        RuntimeError: scikit-image is not installed.
    """
    if name not in PHOTOS:
        raise ValueError(f"load_photo: name must be one of {', '.join(PHOTOS)}, got {name}")
    return bundled_picture(name)


def bundled_picture(name: str) -> NDArray[np.uint8]:
    """Return a picture that is inside the scikit-image wheel.

    Args:
        name: name of a function of ``skimage.data`` whose file needs no download.

    Returns:
        ``(H, W)`` or ``(H, W, 3)`` uint8.

    Raises:
        RuntimeError: scikit-image is not installed.
    """
    try:
        import skimage.data
    except ImportError as error:
        raise RuntimeError(
            f"ocnet.data: the picture {name!r} comes with scikit-image, which is missing; "
            'install it with: pip install "ocnet[demo]"'
        ) from error
    picture: Any = getattr(skimage.data, name)()
    return np.ascontiguousarray(picture, dtype=np.uint8)
