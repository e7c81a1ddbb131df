# SPDX-License-Identifier: MIT
"""Pictures under their labels: what is painted, what the legend says, and what is refused."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ocnet.report import contact_sheet
from ocnet.report.style import Array

NAMES = ("sky", "road", "car")
PALETTE = ((200, 0, 0), (0, 200, 0), (0, 0, 200))
Row = tuple[Array, Array, str]


def row(height: int = 6, width: int = 8, caption: str = "train: a") -> Row:
    picture = np.full((height, width, 3), 100, dtype=np.uint8)
    return picture, np.zeros((height, width), dtype=np.int64), caption


def draw(path: Path, rows: list[Row]) -> None:
    contact_sheet(path, rows, NAMES, PALETTE, title="folder")


def images(figure: Any) -> list[Array]:
    return [np.asarray(axis.images[0].get_array()) for axis in figure.axes if axis.images]


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize(("count", "lines"), [(1, 1), (4, 1), (5, 2), (12, 3)])
def test_twelve_pictures_in_rows_of_four(
    tmp_path: Path, drawn: list[Any], count: int, lines: int
) -> None:
    rows = [row(caption=f"train: {number}") for number in range(count)]
    draw(tmp_path / "sheet.png", rows)
    (figure,) = drawn
    assert len(images(figure)) == count
    assert [axis.get_title() for axis in figure.axes[:count]] == [r[2] for r in rows]
    places = figure.axes[0].get_subplotspec().get_gridspec()
    assert (places.nrows, places.ncols) == (lines, min(count, 4))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] == 4 * 3.2 * 120
        assert lines * 100 < sheet.size[1] < lines * 450 + 1000


def test_colours_lie_over_the_picture(tmp_path: Path, drawn: list[Any]) -> None:
    picture, classes, caption = row()
    classes[:, 4:] = 2
    draw(tmp_path / "sheet.png", [(picture, classes, caption)])
    painted = images(drawn[0])[0]
    assert np.all(painted[:, :4] == [150, 50, 50])
    assert np.all(painted[:, 4:] == [50, 50, 150])
    assert legend(drawn[0]) == ["sky", "car"]


def test_ignored_pixels_are_outlined_and_bare(tmp_path: Path, drawn: list[Any]) -> None:
    picture, classes, caption = row(8, 8)
    # From the border of the picture: no outline there.
    classes[:5, 2:7] = 255
    draw(tmp_path / "sheet.png", [(picture, classes, caption)])
    painted = images(drawn[0])[0]
    white = np.zeros((8, 8), dtype=bool)
    white[:5, [2, 6]] = True
    white[4, 2:7] = True
    assert np.array_equal(np.all(painted == 255, axis=-1), white)
    assert np.all(painted[:4, 3:6] == 100)
    assert np.all(painted[5:] == [150, 50, 50])
    assert legend(drawn[0]) == ["sky", "ignored"]


def test_values_that_are_no_class_are_magenta(tmp_path: Path, drawn: list[Any]) -> None:
    picture, classes, caption = row()
    classes[0, 0], classes[0, 1] = -1, 3
    draw(tmp_path / "sheet.png", [(picture, classes, caption)])
    assert np.all(images(drawn[0])[0][0, :2] == [178, 50, 178])
    assert legend(drawn[0]) == ["sky", "unknown value"]


def test_large_pictures_are_thinned_together_with_their_labels(
    tmp_path: Path, drawn: list[Any]
) -> None:
    picture, classes, caption = row(1000, 2000)
    classes[500:, 1200:] = 1
    draw(tmp_path / "sheet.png", [(picture, classes, caption)])
    painted = images(drawn[0])[0]
    assert painted.shape == (250, 500, 3)
    green = np.all(painted == [50, 150, 50], axis=-1)
    assert green[125:, 300:].all()
    assert green.sum() == 125 * 200


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], "rows must be 1 to 12, got 0"),
        ([row()] * 13, "rows must be 1 to 12, got 13"),
        (
            [(row()[0], row(6, 7)[1], "b")],
            r"shape \(6, 7, 3\), as its labels, got \(6, 8, 3\) of b",
        ),
    ],
)
def test_wrong_rows_are_refused(tmp_path: Path, rows: list[Row], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        draw(tmp_path / "sheet.png", rows)
    assert not (tmp_path / "sheet.png").exists()


def test_without_matplotlib_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RuntimeError, match="matplotlib must be installed"):
        draw(tmp_path / "sheet.png", [row()])
    assert not (tmp_path / "sheet.png").exists()
