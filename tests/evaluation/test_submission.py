# SPDX-License-Identifier: MIT
"""From classes to the files of a test server and back."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ocnet.data import LabelMap, distinct_colours, read_label
from ocnet.evaluation import write_submission, zip_submission

# Cityscapes: id of each class, and its colour.
CITYSCAPES = {
    7: (128, 64, 128),
    8: (244, 35, 232),
    11: (70, 70, 70),
    12: (102, 102, 156),
    13: (190, 153, 153),
    17: (153, 153, 153),
    19: (250, 170, 30),
    20: (220, 220, 0),
    21: (107, 142, 35),
    22: (152, 251, 152),
    23: (70, 130, 180),
    24: (220, 20, 60),
    25: (255, 0, 0),
    26: (0, 0, 142),
    27: (0, 0, 70),
    28: (0, 60, 100),
    31: (0, 80, 100),
    32: (0, 0, 230),
    33: (119, 11, 32),
}
LABEL_MAP = LabelMap.listed(CITYSCAPES, set(range(34)) - CITYSCAPES.keys())
PALETTE = tuple(CITYSCAPES.values())


@pytest.mark.parametrize("palette", [PALETTE, None])
def test_every_class_comes_back(
    tmp_path: Path, palette: tuple[tuple[int, int, int], ...] | None
) -> None:
    classes = np.random.default_rng(0).permutation(np.arange(19 * 4) % 19).reshape(4, 19)
    path = write_submission(tmp_path / "new" / "out", "munich_000000", classes, LABEL_MAP, palette)
    assert path == tmp_path / "new" / "out" / "munich_000000.png"
    values = read_label(path)
    assert values.dtype == np.uint8
    np.testing.assert_array_equal(values, np.array(list(CITYSCAPES))[classes])
    np.testing.assert_array_equal(LABEL_MAP.decode(values, "file"), classes)
    with Image.open(path) as picture:
        assert picture.mode == ("L" if palette is None else "P")
        if palette is not None:
            np.testing.assert_array_equal(picture.convert("RGB"), np.array(PALETTE)[classes])


def test_a_class_may_have_the_value_255(tmp_path: Path) -> None:
    classes = np.array([[0, 1, 1]])
    label_map = LabelMap({3: 0, 255: 1})
    path = write_submission(tmp_path, "a", classes, label_map, distinct_colours(2))
    np.testing.assert_array_equal(read_label(path), [[3, 255, 255]])


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder, classes = tmp_path / "out", np.array([[0, 1]])
    deep = LabelMap({7: 0, 256: 1})
    for name in ("munich/munich_000000", "", "../a", "a/"):
        with pytest.raises(ValueError, match="name must be a file name without a folder, got"):
            write_submission(folder, name, classes, LABEL_MAP, PALETTE)
    for palette in (distinct_colours(2), None):
        with pytest.raises(ValueError, match="values up to 255 for an 8-bit PNG, got up to 256"):
            write_submission(folder, "a", classes, deep, palette)
    with pytest.raises(ValueError, match="classes must be in 0 to 18, got 255"):
        write_submission(folder, "a", np.array([[255]]), LABEL_MAP, PALETTE)
    with pytest.raises(ValueError, match="palette must have 19 colours, got 18"):
        write_submission(folder, "a", classes, LABEL_MAP, PALETTE[:-1])
    assert not folder.exists()


def test_the_archive_is_flat_and_always_the_same(tmp_path: Path) -> None:
    archives = []
    for name, order in (("one", (0, 1, 2)), ("two", (2, 0, 1))):
        folder = tmp_path / name
        for k in order:
            write_submission(folder, f"city_{k}", np.full((4, 6), k), LABEL_MAP, PALETTE)
        (folder / "log.txt").write_text(name)
        (folder / "more.png").mkdir()
        path = zip_submission(folder)
        assert path == tmp_path / f"{name}.zip"
        assert zip_submission(folder).read_bytes() == path.read_bytes()
        archives.append(path)
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with zipfile.ZipFile(archives[0]) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["city_0.png", "city_1.png", "city_2.png"]
        archive.extractall(tmp_path / "back")
    np.testing.assert_array_equal(read_label(tmp_path / "back" / "city_1.png"), np.full((4, 6), 8))


def test_an_empty_folder_makes_no_archive(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(FileNotFoundError, match="folder must have PNGs, got none in"):
        zip_submission(tmp_path / "out")
    assert not (tmp_path / "out.zip").exists()
