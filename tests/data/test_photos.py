# SPDX-License-Identifier: MIT
"""Photographs that need no internet."""

import numpy as np
import pytest

from ocnet.data import PHOTOS, load_photo


@pytest.mark.parametrize("name", PHOTOS)
def test_photos_are_colour_pictures_with_a_licence(name: str) -> None:
    photo = load_photo(name)
    assert photo.dtype == np.uint8
    assert photo.ndim == 3
    assert photo.shape[2] == 3
    assert min(photo.shape[:2]) >= 300
    assert "CC0" in PHOTOS[name].licence or "public domain" in PHOTOS[name].licence


def test_unknown_photo_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^load_photo: name must be one of astronaut, .* got dog"):
        load_photo("dog")
