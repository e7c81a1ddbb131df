# SPDX-License-Identifier: MIT
"""The error figure: what it paints, and what its legend names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ocnet import report

PALETTE = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
NAMES = ["road", "sky", "car", "tree"]


def legend(figure: Any) -> dict[str, Any]:
    (box,) = figure.legends
    return dict(zip((text.get_text() for text in box.get_texts()), box.get_patches(), strict=True))


def panels(figure: Any) -> dict[str, Any]:
    return {axis.get_title(): axis.images[0].get_array() for axis in figure.axes}


def test_panels_have_the_colours_of_the_classes(tmp_path: Path, drawn: list[Any]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    truth = np.array([[0, 0, 1, 1, 255, 255]] * 4)
    guess = np.array([[0, 1, 1, 1, 2, 0]] * 4)
    path = tmp_path / "e.png"
    report.error_figure(path, picture, truth, guess, NAMES, PALETTE, title="munich_7")
    with Image.open(path) as drawing:
        assert np.asarray(drawing).std() > 0

    shown = panels(drawn[0])
    assert list(shown) == ["picture", "truth", "prediction", "errors (25.0% of the pixels)"]
    np.testing.assert_array_equal(shown["picture"], picture)
    white = [1.0, 1.0, 1.0]
    colours = np.array(PALETTE) / 255
    np.testing.assert_array_equal(shown["truth"][2, :4], colours[[0, 0, 1, 1]])
    np.testing.assert_array_equal(shown["truth"][2, 4:], [white] * 2)
    np.testing.assert_array_equal(shown["prediction"][2], colours[[0, 1, 1, 1, 2, 0]])

    names = legend(drawn[0])
    # Most frequent first: sky 20, road 16, car 4 pixels of both maps; tree does not occur.
    assert list(names) == ["sky", "road", "car", "no class", "wrong pixel"]
    assert names["sky"].get_facecolor() == (0.0, 1.0, 0.0, 1.0)
    errors = shown["errors (25.0% of the pixels)"]
    wrong = np.array(names["wrong pixel"].get_facecolor()[:3])
    assert (errors[:, 1] == wrong).all()
    assert (errors[:, 4:] == 1.0).all()
    right = errors[:, [0, 2, 3]]
    assert (right[..., 0] == right[..., 1]).all()  # grey
    assert (right >= 0.72).all()


def test_many_classes_become_the_most_frequent_and_others(tmp_path: Path, drawn: list[Any]) -> None:
    # Class k has k + 1 pixels.
    truth = np.repeat(np.arange(150), np.arange(1, 151))[:11324].reshape(4, -1)
    names = [f"class {k}" for k in range(150)]
    colours = [(k, 0, 255 - k) for k in range(150)]
    picture = np.zeros((*truth.shape, 3), np.uint8)
    report.error_figure(tmp_path / "e.png", picture, truth, truth, names, colours, title="")
    entries = list(legend(drawn[0]))
    # One pixel of the last class did not fit, so it ties with the one before; numbers decide.
    assert entries[:24] == [f"class {k}" for k in (148, 149, *range(147, 125, -1))]
    share = sum(range(1, 127)) / 11324
    assert entries[24:] == [f"126 others ({share:.1%})", "wrong pixel"]


@pytest.mark.parametrize("shape", [(4, 400, 3), (400, 4, 3), (5, 7)])
def test_pictures_of_any_shape(tmp_path: Path, shape: tuple[int, ...], drawn: list[Any]) -> None:
    labels = np.full(shape[:2], 255)
    path = tmp_path / "e.png"
    report.error_figure(path, np.zeros(shape, np.uint8), labels, labels, NAMES, PALETTE, title="")
    assert "errors (no pixel has a class)" in panels(drawn[0])
    with Image.open(path) as drawing:
        width, height = drawing.size
    assert 0.3 < height / width < 2


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    picture, labels, path = np.zeros((3, 4, 3), np.uint8), np.zeros((3, 4), int), tmp_path / "e.png"
    with pytest.raises(ValueError, match=r"truth must have shape \(3, 4\), got \(4, 3\)"):
        report.error_figure(path, picture, labels.T, labels, NAMES, PALETTE, title="")
    with pytest.raises(ValueError, match=r"prediction must have shape \(3, 4\), got \(4, 3\)"):
        report.error_figure(path, picture, labels, labels.T, NAMES, PALETTE, title="")
    with pytest.raises(ValueError, match="palette must have 4 colours, got 3"):
        report.error_figure(path, picture, labels, labels, NAMES, PALETTE[:3], title="")
    assert not path.exists()
