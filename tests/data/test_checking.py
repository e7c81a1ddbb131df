# SPDX-License-Identifier: MIT
"""Every kind of bad data is found, named with its file, and stops nothing."""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ocnet.data import (
    LabelMap,
    LookupMosaics,
    PictureFiles,
    Sample,
    SegmentationDataset,
)
from ocnet.data.checking import UNKNOWN, examine, rows_to_show
from ocnet.data.sets.cityscapes import CITYSCAPES
from tests.data.checked_tree import NAMES, NORMALISE, Tree, info, label_array, only


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_good_data_has_no_findings(tree: Tree) -> None:
    report = examine(tree.splits())
    assert report.ok
    assert report.problems == report.warnings == ()
    assert report.suggestion is None


def test_counts_are_those_of_the_files(tree: Tree) -> None:
    tree.add("train", "large", 9, 11)
    tree.add("train", "small", 4, 5)
    tree.add("train", "wide", 3, 13)
    small = np.array(Image.open(tree.label("train", "small")))
    small[small == 2] = 0
    Image.fromarray(small).save(tree.label("train", "small"))
    report = examine(tree.splits()).splits["train"]

    labels = [np.array(Image.open(tree.label("train", name))) for name in tree.names["train"]]
    everything = np.concatenate([label.ravel() for label in labels])
    assert (report.pictures, report.looked_at, report.labelled) == (6, 6, 6)
    assert (report.smallest, report.largest, report.most_common) == ((5, 4), (11, 9), (8, 6))
    for number, each in enumerate(report.classes):
        assert each.name == NAMES[number]
        assert each.pixels == np.sum(everything == number)
        assert each.share == pytest.approx(np.mean(everything == number), rel=1e-12)
        assert each.pictures == sum(bool(np.any(label == number)) for label in labels)
    assert [each.pictures for each in report.classes] == [6, 6, 5]
    assert report.ignored == np.sum(everything == 255) == 6
    assert report.ignored_share == pytest.approx(np.mean(everything == 255), rel=1e-12)
    assert report.values == {v: int(np.sum(everything == v)) for v in (0, 1, 2, 255)}
    assert report.absent == ()


def test_classes_are_counted_through_the_label_map(tree: Tree) -> None:
    about = info(label_map=LabelMap({0: 2, 1: 0, 2: 0, 255: 1}))
    counts = examine(tree.splits(about)).splits["val"]
    pixels = label_array()
    expected = [np.sum((pixels == 1) | (pixels == 2)), 1, np.sum(pixels == 0)]
    assert [each.pixels for each in counts.classes] == [2 * count for count in expected]
    assert counts.ignored == 0


@pytest.mark.parametrize("cut", ["header", "middle"])
def test_a_corrupt_picture_is_named_and_the_rest_is_read(tree: Tree, cut: str) -> None:
    path = tree.image("train", "train_1")
    content = path.read_bytes()
    path.write_bytes(b"hello" if cut == "header" else content[: len(content) // 2])
    report = examine(tree.splits())
    kind, split, file, sentence = only(report)
    assert (kind, split, file) == ("unreadable picture", "train", str(path))
    assert sentence.startswith(f"read_picture: path must name a picture, got {path} (")
    train = report.splits["train"]
    assert (train.looked_at, train.labelled) == (3, 3)
    assert examine({"train": tree.data("val")}).ok


def test_a_broken_chunk_is_a_finding_too(tree: Tree) -> None:
    path = tree.image("train", "train_1")
    content = bytearray(path.read_bytes())
    # The checksum of the first chunk after the header, and its name.
    at = content.index(b"IDAT")
    content[at : at + 4] = b"\x1bDAT"
    path.write_bytes(bytes(content))
    kind, _, file, sentence = only(examine(tree.splits()))
    assert (kind, file) == ("unreadable picture", str(path))
    assert str(path) in sentence


def test_a_missing_file_is_named(tree: Tree) -> None:
    splits = tree.splits()
    tree.image("val", "val_0").unlink()
    path = tree.image("val", "val_0")
    assert only(examine(splits)) == (
        "unreadable picture",
        "val",
        str(path),
        f"read_picture: path must name a file, got {path}",
    )


def test_a_corrupt_label_is_named(tree: Tree) -> None:
    path = tree.label("val", "val_1")
    path.write_bytes(path.read_bytes()[:40])
    report = examine(tree.splits())
    kind, split, file, sentence = only(report)
    assert (kind, split, file) == ("unreadable label", "val", str(path))
    assert sentence.startswith(f"dataset: label must be a PNG, got {path} (")
    assert report.splits["val"].labelled == 1


def test_a_colour_label_is_refused(tree: Tree) -> None:
    path = tree.label("train", "train_0")
    Image.new("RGB", (8, 6)).save(path)
    assert only(examine(tree.splits())) == (
        "unreadable label",
        "train",
        str(path),
        f"dataset: label must be a PNG with one channel of class numbers, got mode RGB in {path}",
    )


@pytest.mark.parametrize("value", [3, 34, 254, 256, 300, 65535])
def test_an_unknown_value_is_named_with_its_file_and_what_is_allowed(
    tree: Tree, value: int
) -> None:
    path = tree.label("train", "train_2")
    label = label_array().astype(np.uint16)
    label[3, 2:5] = value
    Image.fromarray(label).save(path)
    report = examine(tree.splits())
    assert only(report) == (
        "unknown value",
        "train",
        str(path),
        f"dataset: label must hold only the values 0 to 2 and 255, got {value} (3 pixels) in {path}",
    )
    assert report.splits["train"].values[value] == 3
    assert sum(each.share for each in report.splits["train"].classes) < 1 - 3 / (3 * 48)


def test_16_bits_are_no_problem_by_themselves(tree: Tree) -> None:
    Image.fromarray(label_array().astype(np.uint16)).save(tree.label("train", "train_0"))
    assert examine(tree.splits()).ok


def test_label_id_34_is_no_cityscapes_label(tree: Tree) -> None:
    label = np.full((6, 8), 7, dtype=np.uint8)
    label[0, 0] = 34
    path = tree.label("train", "train_0")
    tree.write_labels(lambda _: np.full((6, 8), 26, dtype=np.uint8))
    Image.fromarray(label).save(path)
    sentence = only(examine(tree.splits(CITYSCAPES.info(NORMALISE))))[3]
    assert sentence == (
        f"dataset: label must hold only the values 0 to 33 and 255, got 34 (1 pixels) in {path}"
    )


def test_a_label_of_another_size_is_named_as_training_names_it(tree: Tree) -> None:
    path = tree.label("val", "val_0")
    Image.fromarray(label_array(6, 7)).save(path)
    data = tree.splits()
    sentence = f"dataset: label must have the size of its picture, 8 x 6, got 7 x 6 in {path}"
    assert only(examine(data)) == ("size mismatch", "val", str(path), sentence)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        data["val"][0]


def test_all_that_is_wrong_is_collected(tree: Tree) -> None:
    tree.image("train", "train_0").write_text("hello")
    Image.fromarray(label_array() + 1).save(tree.label("train", "train_0"))
    Image.fromarray(label_array(5, 5) * 9).save(tree.label("train", "train_1"))
    tree.label("val", "val_0").write_text("hello")
    report = examine(tree.splits())
    assert [(each.kind, each.split) for each in report.problems] == [
        ("unreadable picture", "train"),
        ("unknown value", "train"),
        ("unknown value", "train"),
        ("size mismatch", "train"),
        ("unreadable label", "val"),
    ]
    assert all("\n" not in each.sentence for each in report.problems)


def test_an_empty_split_is_a_problem() -> None:
    class Nothing(SegmentationDataset):
        def __len__(self) -> int:
            return 0

        def __getitem__(self, index: int) -> Sample:
            raise IndexError(index)

    report = examine({"train": Nothing(info())})
    sentence = "dataset: split must have pictures, got none in train"
    assert only(report) == ("empty split", "train", "", sentence)
    assert report.splits["train"].most_common is None
    with pytest.raises(ValueError, match="entries must have at least one picture, got none"):
        PictureFiles([], info())


def test_names_that_agree_are_refused_by_the_data_set(tree: Tree) -> None:
    tree.names["train"].append("train_0")
    with pytest.raises(ValueError, match="pictures must have different names, got train_0 for"):
        tree.splits()


def test_a_copy_in_the_validation_split_is_a_leak(tree: Tree) -> None:
    first, copy = tree.image("train", "train_1"), tree.image("val", "val_0")
    copy.write_bytes(first.read_bytes())
    assert only(examine(tree.splits())) == (
        "leak",
        "val",
        "val_0",
        f"dataset: val must have no picture of train, got a copy of {first} as {copy}",
    )


def test_the_same_pixels_in_another_file_are_a_leak(tree: Tree) -> None:
    first, copy = tree.image("train", "train_1"), tree.image("val", "val_0")
    with Image.open(first) as opened:
        for path, remark in ((first, "a"), (copy, "b")):
            text = PngInfo()
            text.add_text("remark", remark)
            opened.save(path, pnginfo=text)
            # Of one size and one date, so only the contents tell that these are two files.
            os.utime(path, (1, 1))
    assert first.stat().st_size == copy.stat().st_size
    sentence = only(examine(tree.splits()))[3]
    assert sentence == (
        f"dataset: val must have no picture of train, got the same pixels of {first} as {copy}"
    )


def test_one_changed_pixel_and_another_shape_are_other_pictures(tree: Tree) -> None:
    pixels = np.array(Image.open(tree.image("train", "train_0")))
    Image.fromarray(pixels.reshape(8, 6, 3)).save(tree.image("val", "val_0"))
    Image.fromarray(label_array(8, 6)).save(tree.label("val", "val_0"))
    pixels[5, 7, 2] ^= 1
    Image.fromarray(pixels).save(tree.image("val", "val_1"))
    assert examine(tree.splits()).ok


def test_a_picture_twice_in_a_split_is_odd_only(tree: Tree) -> None:
    first, copy = tree.image("train", "train_0"), tree.image("train", "train_2")
    copy.write_bytes(first.read_bytes())
    report = examine(tree.splits())
    assert report.ok
    (warning,) = report.warnings
    assert (warning.kind, warning.file) == ("repeated picture", "train_2")
    assert warning.sentence == (
        f"dataset: pictures of train must differ, got a copy of {first} as {copy}"
    )


def test_classes_that_cannot_be_learned_are_odd(tree: Tree) -> None:
    for name in tree.names["train"]:
        label = label_array()
        Image.fromarray(np.where(label == 255, 255, 0).astype(np.uint8)).save(
            tree.label("train", name)
        )
    for name in tree.names["val"]:
        label = label_array()
        label[label == 1] = 0
        Image.fromarray(label).save(tree.label("val", name))
    report = examine(tree.splits())
    assert report.ok
    assert [warning.sentence for warning in report.warnings] == [
        "dataset: train must show every class, got no pixel of road, car in 3 labels",
        "dataset: val must have no class that train never shows, got car",
    ]


def test_a_label_without_any_class_is_odd(tree: Tree) -> None:
    Image.fromarray(np.full((6, 8), 255, dtype=np.uint8)).save(tree.label("val", "val_1"))
    report = examine(tree.splits())
    assert report.ok
    (warning,) = report.warnings
    assert warning.sentence == (
        "dataset: label must have pixels with a class, got only ignored ones of val_1"
    )


def test_labels_must_be_there_unless_the_split_needs_none(tree: Tree) -> None:
    train = tree.data("train")
    some = tree.data("val", unlabelled=("val_1",))
    none = tree.data("val", unlabelled=("val_0", "val_1"))
    assert only(examine({"train": train, "val": some})) == (
        "no label",
        "val",
        "val_1",
        "dataset: picture must have a label, got none for val_1",
    )
    assert only(examine({"train": train, "val": none})) == (
        "no labels",
        "val",
        "",
        "dataset: split must have labels to be trained or scored on, got none in val",
    )
    report = examine({"train": train, "val": none}, unlabelled=("val",))
    assert report.ok
    assert (report.splits["val"].looked_at, report.splits["val"].labelled) == (2, 0)


def test_other_data_sets_are_counted_by_their_samples() -> None:
    splits = {"train": LookupMosaics("train", 32, 8), "val": LookupMosaics("val", 32, 2)}
    report = examine(splits)
    assert report.ok
    labels = torch.stack([splits["train"][index].label for index in range(8)])
    counts = torch.bincount(labels.flatten(), minlength=5).tolist()
    assert [each.pixels for each in report.splits["train"].classes] == counts
    assert report.splits["val"].most_common == (32, 32)


class Samples(SegmentationDataset):
    """Samples in memory, ignored where they are 9."""

    ignore_index = 9

    def __init__(self, labels: list[list[int]]) -> None:
        super().__init__(info())
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Sample:
        image = torch.full((3, 1, 3), float(index // 2))
        return Sample(image, torch.tensor([self._labels[index]]), f"s{index}")


def test_samples_are_checked_and_compared_too() -> None:
    report = examine({"train": Samples([[0, 1, 9], [2, 2, 2], [0, 3, 4]])})
    assert only(report)[:3] == ("bad sample", "train", "sample 2")
    assert report.problems[0].sentence == (
        "check_labels: label must hold only classes 0 to 2 and 9 for ignored pixels, got 3, 4 "
        "(2 pixels) in s2"
    )
    assert [warning.sentence for warning in report.warnings] == [
        "dataset: pictures of train must differ, got the same pixels of s0 as s1"
    ]
    assert [each.pixels for each in report.splits["train"].classes] == [1, 1, 3]
    assert report.splits["train"].ignored == 1


def test_a_limit_spreads_over_the_split(tree: Tree) -> None:
    for number in range(7):
        tree.add("train", f"more_{number}")
    seen: list[tuple[str, int, int]] = []
    report = examine(tree.splits(), limit=2, on_item=lambda *item: seen.append(item))
    assert seen == [("train", 1, 2), ("train", 2, 2), ("val", 1, 2), ("val", 2, 2)]
    assert (report.splits["train"].pictures, report.splits["train"].looked_at) == (10, 2)
    # The first, and the one in the middle: number 5.
    tree.image("train", tree.names["train"][5]).write_text("hello")
    assert not examine(tree.splits(), limit=2).ok
    tree.image("train", tree.names["train"][4]).write_text("hello")
    assert len(examine(tree.splits(), limit=2).problems) == 1


def test_calls_that_make_no_sense_are_refused(tree: Tree) -> None:
    with pytest.raises(ValueError, match="examine: limit must be at least 1, got 0"):
        examine(tree.splits(), limit=0)
    with pytest.raises(ValueError, match="examine: splits must have at least one, got none"):
        examine({})


def test_a_missing_package_is_no_fault_of_the_files(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: PictureFiles, index: int) -> np.ndarray:
        raise RuntimeError("dataset: MATLAB labels need scipy")

    monkeypatch.setattr(PictureFiles, "raw_label", fail)
    with pytest.raises(RuntimeError, match="need scipy"):
        examine(tree.splits())


def test_the_report_is_written_as_json_and_csv(tree: Tree, tmp_path: Path) -> None:
    tree.write_labels(lambda label: label + np.uint8(1) * (label < 3))
    report = examine(tree.splits())
    report.write(tmp_path / "check.json")
    report.write_labels(tmp_path / "labels.csv")
    content = json.loads((tmp_path / "check.json").read_text())
    assert content == json.loads(json.dumps(report.to_json()))
    assert content["ok"] is False
    assert len(content["problems"]) == 5
    assert (
        content["splits"]["train"]["classes"][2]["pixels"]
        == report.splits["train"].classes[2].pixels
    )
    assert content["suggestion"]["label_map"] == {"0": 255, "1": 0, "2": 1, "3": 2, "255": 255}
    with (tmp_path / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["split"], row["class"], row["name"]) for row in rows[:4]] == [
        ("train", "0", "sky"),
        ("train", "1", "road"),
        ("train", "2", "car"),
        ("train", "255", "ignored"),
    ]
    assert len(rows) == 8
    assert int(rows[1]["pixels"]) == report.splits["train"].classes[1].pixels > 0


def test_rows_to_show_have_every_split_and_leave_out_what_cannot_be_shown(tree: Tree) -> None:
    for number in range(20):
        tree.add("train", f"more_{number}")
    tree.image("train", "train_0").write_text("hello")
    label = label_array()
    label[1, 1] = 77
    Image.fromarray(label).save(tree.label("val", "val_1"))
    splits = {"train": tree.data("train"), "val": tree.data("val", unlabelled=("val_0",))}
    rows = rows_to_show(splits)
    assert [caption.split(": ")[0] for _, _, caption in rows] == ["train"] * 5 + ["val"] * 2
    picture, classes, caption = rows[-1]
    assert caption == "val: val_1"
    np.testing.assert_array_equal(picture, np.array(Image.open(tree.image("val", "val_1"))))
    assert classes[1, 1] == UNKNOWN
    classes[1, 1] = 77
    np.testing.assert_array_equal(classes, label)
    assert np.all(rows[-2][1] == 255)


def test_rows_of_samples_are_stretched_to_pictures() -> None:
    mosaics = LookupMosaics("train", 32, 2)
    picture, classes, _ = rows_to_show({"train": mosaics})[0]
    assert picture.shape == (32, 32, 3)
    assert picture.dtype == np.uint8
    assert (picture.min(), picture.max()) == (0, 255)
    np.testing.assert_array_equal(classes, mosaics[0].label.numpy())
    shown = rows_to_show({"train": Samples([[0, 1, 9]])})[0][1]
    assert shown.tolist() == [[0, 1, 255]]
