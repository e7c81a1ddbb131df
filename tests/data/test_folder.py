# SPDX-License-Identifier: MIT
"""Folders of pictures and labels, with every mistake that people make in them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ocnet.data import (
    Crops,
    DatasetInfo,
    LabelMap,
    Normalise,
    PictureFiles,
    distinct_colours,
    overlay,
    read_label,
    read_picture,
    write_class_map,
)
from ocnet.data.sets import folder_entries

NAMES = ("sky", "road", "car")
NORMALISE = Normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def label_array(height: int = 6, width: int = 8) -> np.ndarray:
    label = np.arange(height * width).reshape(height, width) % 3
    label[0, 0] = 255
    return label.astype(np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    rng = np.random.default_rng(0)
    for stem in ("b", "a"):
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{stem}.png")
        Image.fromarray(label_array()).save(tmp_path / "labels" / f"{stem}.png")
    (tmp_path / "images" / "notes.txt").write_text("not a picture")
    return tmp_path


def pairs(root: Path, label_map: LabelMap | None = None) -> PictureFiles:
    classes = LabelMap.identity(3) if label_map is None else label_map
    info = DatasetInfo(NAMES, NORMALISE, distinct_colours(3), classes)
    return PictureFiles(folder_entries(root), info, Crops(NORMALISE, crop=(4, 4)))


def test_pairs_are_read_in_order(root: Path) -> None:
    dataset = pairs(root)
    assert len(dataset) == 2
    assert [dataset[index].name for index in range(2)] == ["a", "b"]
    sample = dataset[1]
    pixels = read_picture(root / "images" / "b.png")
    assert torch.equal(sample.image, NORMALISE(pixels))
    assert sample.label.dtype == torch.int64
    np.testing.assert_array_equal(sample.label.numpy(), label_array())


def test_draw_crops_repeatably(root: Path) -> None:
    dataset = pairs(root)
    one = dataset.draw(0, torch.Generator().manual_seed(1))
    two = dataset.draw(0, torch.Generator().manual_seed(1))
    assert one.image.shape == (3, 4, 4)
    assert one.label.shape == (4, 4)
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.label, two.label)
    others = [dataset.draw(0, torch.Generator().manual_seed(seed)).image for seed in range(2, 6)]
    assert not all(torch.equal(one.image, other) for other in others)


def test_label_outside_the_classes_is_named(root: Path) -> None:
    label = label_array()
    label[2, 2:4] = 7
    Image.fromarray(label).save(root / "labels" / "b.png")
    complaint = r"only the values 0 to 2 and 255, got 7 \(2 pixels\) in .*b\.png"
    with pytest.raises(ValueError, match=complaint):
        pairs(root)[1]
    with pytest.raises(ValueError, match=complaint):
        pairs(root).check(2)
    # Whatever the crop, the whole label is looked at.
    with pytest.raises(ValueError, match=complaint):
        pairs(root).draw(1, torch.Generator().manual_seed(0))


def test_palette_labels_count_by_index(root: Path) -> None:
    write_class_map(root / "labels" / "a.png", label_array().astype(np.int64), [(9, 9, 9)] * 3)
    with Image.open(root / "labels" / "a.png") as opened:
        assert opened.mode == "P"
    np.testing.assert_array_equal(pairs(root)[0].label.numpy(), label_array())


def test_label_values_are_mapped(root: Path) -> None:
    files = np.array([0, 128, 200], dtype=np.uint8)[label_array() % 3]
    Image.fromarray(files).save(root / "labels" / "a.png")
    dataset = pairs(root, LabelMap({0: 1, 128: 0, 200: 255}))
    expected = np.array([1, 0, 255])[label_array() % 3]
    np.testing.assert_array_equal(dataset[0].label.numpy(), expected)


def test_pictures_without_labels_can_be_had_but_not_trained_on(root: Path) -> None:
    for path in (root / "labels").iterdir():
        path.unlink()
    (root / "labels").rmdir()
    dataset = pairs(root)
    assert not dataset.labelled
    assert dataset.picture(1).shape == (6, 8, 3)
    with pytest.raises(
        ValueError, match=r"must have a label to be trained or scored on, got .*a\.png"
    ):
        dataset[0]


def test_two_pictures_of_one_name_are_refused(root: Path) -> None:
    info = DatasetInfo(NAMES, NORMALISE, distinct_colours(3))
    with pytest.raises(ValueError, match=r"different names, got a for .*a\.png and .*a\.png"):
        PictureFiles([*folder_entries(root), *folder_entries(root)], info)
    with pytest.raises(ValueError, match="at least one picture, got none"):
        PictureFiles([], info)


def test_16_bit_labels_are_read(root: Path) -> None:
    Image.fromarray(label_array().astype(np.uint16)).save(root / "labels" / "a.png")
    np.testing.assert_array_equal(pairs(root)[0].label.numpy(), label_array())


def test_colour_labels_are_refused(root: Path) -> None:
    Image.new("RGB", (8, 6)).save(root / "labels" / "a.png")
    with pytest.raises(ValueError, match=r"one channel of class numbers, got mode RGB in .*a\.png"):
        pairs(root)[0]


def test_label_of_another_size_is_refused(root: Path) -> None:
    Image.fromarray(label_array(8, 8)).save(root / "labels" / "a.png")
    with pytest.raises(ValueError, match=r"8 x 6, got 8 x 8 in .*a\.png"):
        pairs(root)[0]


def test_missing_label_is_named(root: Path) -> None:
    (root / "labels" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"got none for a\.png: .*a\.png is missing"):
        pairs(root)


def test_broken_label_is_named(root: Path) -> None:
    (root / "labels" / "a.png").write_text("hello")
    with pytest.raises(ValueError, match=r"label must be a PNG, got .*a\.png"):
        pairs(root)[0]


def test_two_pictures_of_one_stem_are_refused(root: Path) -> None:
    Image.new("RGB", (8, 6)).save(root / "images" / "a.jpg")
    with pytest.raises(ValueError, match=r"different stems, got a\.jpg and a\.png"):
        pairs(root)


def test_missing_folders_and_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="without images"):
        pairs(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(FileNotFoundError, match="must have pictures"):
        pairs(tmp_path)


@pytest.mark.parametrize("index", [-1, 2])
def test_a_picture_that_does_not_exist_is_refused(root: Path, index: int) -> None:
    with pytest.raises(IndexError, match="index must be 0 to 1"):
        pairs(root)[index]


def test_pictures_are_read_upright_as_rgb(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "turned.png"), np.rot90(pixels, -1))
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "alpha.png"), pixels)


@pytest.mark.parametrize(
    "error", [SyntaxError("broken PNG file"), Image.DecompressionBombError("!")]
)
def test_whatever_pillow_says_of_damaged_files_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(label_array()).save(path)

    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ValueError, match=r"must name a picture, got .*x\.png"):
        read_picture(path)
    with pytest.raises(ValueError, match=r"label must be a PNG, got .*x\.png"):
        read_label(path)


def test_16_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    deep = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    shown = read_picture(tmp_path / "deep.png")
    np.testing.assert_array_equal(shown[..., 0], [[0, 100], [200, 255]])
    np.testing.assert_array_equal(shown[..., 0], shown[..., 2])


def test_unreadable_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"got .*none\.png"):
        read_picture(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"must name a picture, got .*text\.png"):
        read_picture(tmp_path / "text.png")


def test_overlay_mixes_by_opacity() -> None:
    picture = np.full((1, 2, 3), 100, dtype=np.uint8)
    classes = np.array([[0, 1]])
    mixed = overlay(picture, classes, [(200, 0, 100), (0, 0, 0)], opacity=0.25)
    np.testing.assert_array_equal(mixed, [[[125, 75, 100], [75, 75, 75]]])


def test_class_map_refuses_more_classes_than_bytes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most 255 colours, got 256"):
        write_class_map(tmp_path / "x.png", np.zeros((2, 2), dtype=np.int64), [(0, 0, 0)] * 256)
    assert not (tmp_path / "x.png").exists()
