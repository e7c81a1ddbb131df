# SPDX-License-Identifier: MIT
"""Published data sets: their files are found where they are, and their values mean what they mean."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from ocnet.data import IGNORE_INDEX, Entry, LabelMap, Normalise, PictureFiles
from ocnet.data.sets import SOURCES, Source, folder_entries
from tests.data import trees
from tests.data.trees import TREES, VALUES, VARIANTS, label_values

LAYOUTS = {**{name: (name, write) for name, write in TREES.items()}, **VARIANTS}
TRANSFORM = Normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(params=LAYOUTS, ids=lambda name: name.replace(", ", "-").replace(" ", "_"))
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Source, Path]:
    name, write = LAYOUTS[request.param]
    write(tmp_path)
    return name, SOURCES[name], tmp_path


def raw_values(label: Path) -> np.ndarray:
    if label.suffix == ".png":
        with Image.open(label) as opened:
            return np.array(opened)
    content = scipy.io.loadmat(label)
    return content["S"] if "S" in content else content["LabelMap"]


def meaning(name: str, label: Path) -> dict[int, int]:
    """Class of every value of a label file, written down once more."""
    if name == "cityscapes":
        ids = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)
        return {**dict.fromkeys((*range(34), 255), 255), **{v: k for k, v in enumerate(ids)}}
    if name == "ade20k":
        return {value: (value - 1) % 256 for value in range(151)}
    if name == "lip":
        return {value: value for value in (*range(20), 255)}
    if name == "coco_stuff":
        return {value: (k - 1) % 256 for k, value in enumerate(VALUES["coco_stuff"])}
    shift = 1 if name == "pascal_context_59" else 0
    if label.suffix == ".png":
        return {value: (value - shift) % 256 for value in range(60)}
    place = {number: k for k, number in enumerate(trees.CONTEXT_NAMES, 1)}
    return {value: (place.get(value, 0) - shift) % 256 for value in range(460)}


def file_values(name: str, label: Path) -> tuple[int, ...]:
    if name.startswith("pascal"):
        return VALUES["pascal_context" if label.suffix == ".png" else "pascal_context_mat"]
    return VALUES[name]


def decoded(name: str, entry: Entry) -> np.ndarray:
    assert entry.label is not None
    values = label_values(entry.label.stem, file_values(name, entry.label))
    classes = meaning(name, entry.label)
    return np.array([[classes[int(value)] for value in row] for row in values])


@pytest.mark.parametrize("split", ["train", "val", "trainval"])
def test_labels_decode_to_what_was_written(layout: tuple[str, Source, Path], split: str) -> None:
    name, source, root = layout
    entries = source.entries(root, split)
    assert len(entries) == {"train": 4, "val": 2, "trainval": 6}[split]
    dataset = PictureFiles(entries, source.info(TRANSFORM, root))
    for index, entry in enumerate(entries):
        sample = dataset[index]
        assert sample.name == entry.name == entry.picture.stem
        assert sample.image.shape == (3, *trees.SIZE)
        np.testing.assert_array_equal(sample.label.numpy(), decoded(name, entry))


def test_every_value_has_its_class(layout: tuple[str, Source, Path]) -> None:
    # The labels of a tree hold some values only.
    name, source, root = layout
    label = source.entries(root, "train")[0].label
    assert label is not None
    values = np.array([file_values(name, label)])
    if label.suffix == ".png":
        trees.write_png(label, values)
    else:
        trees.write_matrix(label, "S" if name == "coco_stuff" else "LabelMap", values)
    got = source.label_map_of(root).decode(raw_values(label).astype(np.uint16), str(label))
    classes = meaning(name, label)
    assert got.ravel().tolist() == [classes[value] for value in values.ravel().tolist()]


def test_trainval_is_train_and_then_val(layout: tuple[str, Source, Path]) -> None:
    _, source, root = layout
    train, val = source.entries(root, "train"), source.entries(root, "val")
    assert source.entries(root, "trainval") == train + val
    assert source.entries(root, "val+train") == val + train
    for entries in (train, val):
        assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)


def test_pictures_and_labels_belong_together(layout: tuple[str, Source, Path]) -> None:
    # Pictures are drawn from their labels; those of JPEG files are not exact.
    name, source, root = layout
    for entry in source.entries(root, "trainval"):
        assert entry.label is not None
        with Image.open(entry.picture) as opened:
            picture = np.array(opened).astype(int)
        shown = raw_values(entry.label).astype(int)[..., None] * (37, 91, 53) % 256
        limit = 8 if entry.picture.suffix == ".png" else 30
        assert np.abs(picture - shown).mean() < limit, (name, entry)


@pytest.mark.parametrize("layout_name", [n for n in LAYOUTS if LAYOUTS[n][0] in ("ade20k", "lip")])
def test_test_pictures_have_no_label(layout_name: str, tmp_path: Path) -> None:
    name, write = LAYOUTS[layout_name]
    write(tmp_path)
    entries = SOURCES[name].entries(tmp_path, "test")
    assert len(entries) == 2
    assert all(entry.label is None and entry.picture.is_file() for entry in entries)
    assert not set(entries) & set(SOURCES[name].entries(tmp_path, "trainval"))


def test_cityscapes_files(tmp_path: Path) -> None:
    trees.cityscapes_tree(tmp_path)
    source = SOURCES["cityscapes"]
    first = source.entries(tmp_path, "train")[0]
    assert first == Entry(
        tmp_path / "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png",
        tmp_path / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png",
        "aachen_000000_000019_leftImg8bit",
    )
    names = [entry.name for entry in source.entries(tmp_path, "train")]
    assert [name[:13] for name in names] == [
        "aachen_000000",
        "aachen_000002",
        "bremen_000001",
        "bremen_000003",
    ]
    extra = source.entries(tmp_path, "train_extra")
    assert [entry.label for entry in extra] == [
        tmp_path / "gtCoarse/train_extra/augsburg/augsburg_000000_000019_gtCoarse_labelIds.png",
        tmp_path / "gtCoarse/train_extra/bayreuth/bayreuth_000001_000019_gtCoarse_labelIds.png",
    ]
    for split in ("train", "val"):
        fine, coarse = source.entries(tmp_path, split), source.entries(tmp_path, f"coarse_{split}")
        assert [entry.picture for entry in coarse] == [entry.picture for entry in fine]
        for one, other in zip(fine, coarse, strict=True):
            assert str(other.label) == str(one.label).replace("gtFine", "gtCoarse")
    assert [entry.label for entry in source.entries(tmp_path, "test")] == [None, None]
    assert len(source.entries(tmp_path, "train+train_extra")) == 6


def test_dot_files_are_no_pictures(tmp_path: Path) -> None:
    trees.ade20k_tree(tmp_path)
    twin = tmp_path / "images/training/._ADE_train_00000001.jpg"
    twin.write_text("what macOS adds to archives")
    assert len(SOURCES["ade20k"].entries(tmp_path, "train")) == 4


def test_matrices_win_over_pngs(tmp_path: Path) -> None:
    trees.coco_stuff_tree(tmp_path)
    trees.coco_stuff_tree(tmp_path, {"train": 2}, ending="png")
    entries = SOURCES["coco_stuff"].entries(tmp_path, "train")
    assert [entry.label.suffix for entry in entries if entry.label] == [".mat", ".mat"]


def test_context_prefers_its_own_lists_and_pngs(tmp_path: Path) -> None:
    trees.pascal_context_tree(tmp_path, {"train": 4, "val": 2}, ending="mat")
    trees.pascal_context_tree(tmp_path, {"train": 3, "val": 2})
    source = SOURCES["pascal_context_59"]
    entries = source.entries(tmp_path, "train")
    assert [entry.label.suffix for entry in entries if entry.label] == [".png"] * 3
    assert source.label_map_of(tmp_path) == source.label_map
    shutil.rmtree(tmp_path / "SegmentationClassContext")
    assert source.entries(tmp_path, "train")[0].label == tmp_path / "trainval/2008_000005.mat"
    assert len(source.label_map_of(tmp_path).classes) == 460
    # Without a root no file is asked.
    assert source.info(TRANSFORM).label_map == source.label_map


UNKNOWN = {
    "cityscapes": (34, "0 to 33 and 255"),
    "ade20k": (151, "0 to 150"),
    "lip": (20, "0 to 19 and 255"),
    "coco_stuff": (
        12,
        "0 to 11, 13 to 25, 27, 28, 31 to 44, 46 to 65, 67, 70, 72 to 82, 84 to 90 and 92 to 182",
    ),
    "pascal_context_59": (60, "0 to 59"),
    "pascal_context_60": (255, "0 to 59"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_unknown_values_are_refused(name: str, tmp_path: Path) -> None:
    TREES[name](tmp_path)
    source = SOURCES[name]
    entries = source.entries(tmp_path, "train")
    label = entries[1].label
    assert label is not None
    wrong, allowed = UNKNOWN[name]
    values = np.full(trees.SIZE, 1)
    values[3, 4:6] = wrong
    if label.suffix == ".png":
        trees.write_png(label, values)
    else:
        trees.write_matrix(label, "S", values)
    dataset = PictureFiles(entries, source.info(TRANSFORM, tmp_path))
    dataset[0]
    with pytest.raises(ValueError, match=r"label must hold only the values") as caught:
        dataset[1]
    complaint = f"only the values {allowed}, got {wrong} (2 pixels) in {label}"
    assert str(caught.value).endswith(complaint)


def test_ids_that_coco_dropped_are_unknown() -> None:
    # A class of version 1.0, whose files number all classes from 1 to 172, must not pass for another.
    removed = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
    classes = SOURCES["coco_stuff"].label_map.classes
    assert set(range(256)) - set(classes) == removed | set(range(183, 256))


FACTS: dict[str, tuple[int, dict[int, str], dict[int, tuple[int, int, int]]]] = {
    "cityscapes": (
        19,
        {0: "road", 6: "traffic light", 7: "traffic sign", 11: "person", 18: "bicycle"},
        {0: (128, 64, 128), 6: (250, 170, 30), 10: (70, 130, 180), 13: (0, 0, 142), 18: (119, 11, 32)},
    ),
    "ade20k": (
        150,
        {0: "wall", 7: "bed", 44: "chest of drawers", 89: "television receiver", 149: "flag"},
        {0: (120, 120, 120), 2: (6, 230, 230), 48: (140, 140, 140), 149: (92, 0, 255)},
    ),
    "lip": (
        20,
        {0: "Background", 5: "Upper-clothes", 14: "Left-arm", 15: "Right-arm", 19: "Right-shoe"},
        {0: (0, 0, 0), 7: (0, 119, 221), 11: (52, 86, 128), 19: (255, 170, 0)},
    ),
    "coco_stuff": (
        171,
        {0: "person", 11: "stop sign", 79: "toothbrush", 80: "banner", 95: "counter", 170: "wood"},
        {0: (128, 0, 0), 10: (192, 128, 0)},
    ),
    "pascal_context_59": (
        59,
        {0: "aeroplane", 1: "bag", 5: "bicycle", 36: "person", 49: "table", 58: "wood"},
        {0: (128, 0, 0), 1: (0, 128, 0), 6: (128, 128, 128)},
    ),
    "pascal_context_60": (
        60,
        {0: "background", 1: "aeroplane", 37: "person", 59: "wood"},
        {0: (0, 0, 0), 1: (128, 0, 0)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_tables(name: str) -> None:
    source = SOURCES[name]
    count, names, colours = FACTS[name]
    assert len(source.class_names) == len(source.palette) == count
    assert len(set(source.class_names)) == count
    assert {number: source.class_names[number] for number in names} == names
    assert {number: source.palette[number] for number in colours} == colours
    assert all(0 <= part <= 255 for colour in source.palette for part in colour)
    # Road and skyscraper of ADE20K have one colour in the official table.
    assert len(set(source.palette)) == (149 if name == "ade20k" else count)
    classes = set(source.label_map.classes.values()) - {IGNORE_INDEX}
    assert classes == set(range(count))
    swapped = {number for pair in source.mirror_pairs for number in pair}
    sided = {n for n, text in enumerate(source.class_names) if text.startswith(("Left-", "Right-"))}
    assert swapped == sided
    for left, right in source.mirror_pairs:
        assert source.class_names[left].replace("Left", "Right") == source.class_names[right]


@pytest.mark.parametrize("name", SOURCES)
def test_classes_survive_the_way_through_files(name: str) -> None:
    labels: LabelMap = SOURCES[name].label_map
    classes = np.arange(FACTS[name][0])
    values = labels.encode(classes)
    np.testing.assert_array_equal(labels.decode(values, ""), classes)
    for number, value in zip(classes.tolist(), values.tolist(), strict=True):
        assert meaning(name, Path("label.png"))[value] == number


def test_names_of_coco_stuff_are_those_of_its_ids() -> None:
    names = dict(zip(VALUES["coco_stuff"][1:], SOURCES["coco_stuff"].class_names, strict=True))
    spots = {13: "stop sign", 27: "backpack", 44: "bottle", 46: "wine glass", 67: "dining table"}
    spots |= {84: "book", 92: "banner", 128: "house", 157: "sky-other", 178: "water-other"}
    assert {number: names[number] for number in spots} == spots
    assert list(SOURCES["coco_stuff"].class_names[80:]) == sorted(names[n] for n in range(92, 183))


def test_context_names_are_in_the_order_of_their_categories() -> None:
    names = SOURCES["pascal_context_59"].class_names
    assert list(names) == list(trees.CONTEXT_NAMES.values()) == sorted(names)
    assert SOURCES["pascal_context_60"].class_names[1:] == names


LISTED = """\
leftImg8bit/val/frankfurt/frankfurt_000000_000019_leftImg8bit.png\tgtFine/val/frankfurt/\
frankfurt_000000_000019_gtFine_labelIds.png

leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png  gtFine/train/aachen/\
aachen_000000_000019_gtFine_labelIds.png
"""


@pytest.mark.parametrize("name", ["mine.lst", "train+.lst", "lists/train++.lst"])
def test_lists_have_their_own_order(name: str, tmp_path: Path) -> None:
    trees.cityscapes_tree(tmp_path)
    trees.write_lines(tmp_path / name, LISTED.splitlines())
    source = SOURCES["cityscapes"]
    listed = source.entries(tmp_path, name)
    expected = [source.entries(tmp_path, "val")[0], source.entries(tmp_path, "train")[0]]
    assert listed == expected
    assert source.entries(tmp_path, f"{name}+test")[:2] == expected
    assert len(source.entries(tmp_path, f"test+{name}")) == 4
    # An absolute name does as well.
    assert source.entries(tmp_path, str(tmp_path / name)) == expected


def test_lists_of_pictures_alone(tmp_path: Path) -> None:
    trees.cityscapes_tree(tmp_path)
    source = SOURCES["cityscapes"]
    tests = source.entries(tmp_path, "test")
    lines = [f"{entry.picture.relative_to(tmp_path)} " for entry in tests]
    trees.write_lines(tmp_path / "test.lst", lines)
    assert source.entries(tmp_path, "test.lst") == tests


def test_lists_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, here = tmp_path / "data", tmp_path / "work"
    trees.cityscapes_tree(root)
    trees.write_lines(here / "lists/two.lst", LISTED.splitlines())
    monkeypatch.chdir(here)
    assert len(SOURCES["cityscapes"].entries(root, "lists/two.lst")) == 2


def test_lists_of_other_sets(tmp_path: Path) -> None:
    # As HRNet has them for ADE20K.
    trees.ade20k_tree(tmp_path)
    picture, label = (
        "images/training/ADE_train_00000002.jpg",
        "annotations/training/ADE_train_00000002.png",
    )
    trees.write_lines(tmp_path / "one.lst", [f"{picture} {label}"])
    expected = [Entry(tmp_path / picture, tmp_path / label, "ADE_train_00000002")]
    assert SOURCES["ade20k"].entries(tmp_path, "one.lst") == expected


def test_lists_with_mistakes(tmp_path: Path) -> None:
    trees.cityscapes_tree(tmp_path)
    source = SOURCES["cityscapes"]
    with pytest.raises(
        FileNotFoundError, match=r"file must exist, got none at .*none\.lst or none"
    ):
        source.entries(tmp_path, "none.lst")
    trees.write_lines(tmp_path / "wide.lst", [LISTED.splitlines()[0], "a b c"])
    with pytest.raises(ValueError, match=r"got 3 words in line 2 of .*wide\.lst"):
        source.entries(tmp_path, "wide.lst")
    trees.write_lines(tmp_path / "ghost.lst", ["leftImg8bit/no.png gtFine/no.png"])
    with pytest.raises(
        FileNotFoundError, match=r"listed must exist, got none at .*leftImg8bit/no\.png"
    ):
        source.entries(tmp_path, "ghost.lst")
    (tmp_path / "empty.lst").write_text("\n\n")
    with pytest.raises(
        ValueError, match=r"split must have pictures, got none in empty\.lst of Citys"
    ):
        source.entries(tmp_path, "empty.lst")


@pytest.mark.parametrize("split", ["valid", "train+nothing", "", "coarse+fine.lst"])
@pytest.mark.parametrize("name", SOURCES)
def test_unknown_splits(name: str, split: str, tmp_path: Path) -> None:
    TREES[name](tmp_path)
    with pytest.raises(
        ValueError, match=r"must be made of train, val.*, got '(valid|nothing||coarse)'"
    ):
        SOURCES[name].entries(tmp_path, split)


@pytest.mark.parametrize(
    ("name", "gone", "named"),
    [
        ("cityscapes", "leftImg8bit", "leftImg8bit/train"),
        ("ade20k", "images/training", "images/training"),
        ("lip", "train_images", "train_images"),
        ("lip", "train_segmentations", "TrainVal_parsing_annotations/train_segmentations"),
        ("lip", "train_id.txt", "train_id.txt"),
        ("coco_stuff", "imageLists", "imageLists/train.txt"),
        ("coco_stuff", "images", "images"),
        ("coco_stuff", "annotations", "annotations"),
        ("pascal_context_59", "JPEGImages", "JPEGImages"),
        ("pascal_context_59", "SegmentationClassContext", "SegmentationClassContext"),
        ("pascal_context_60", "SegmentationClassContext", "trainval"),
        ("pascal_context_60", "ImageSets", "ImageSets/Main/train.txt"),
    ],
)
def test_missing_parts(name: str, gone: str, named: str, tmp_path: Path) -> None:
    TREES[name](tmp_path)
    path = tmp_path / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    source = SOURCES[name]
    with pytest.raises(FileNotFoundError, match=r"must exist, got none at") as caught:
        source.entries(tmp_path, "train")
    message = str(caught.value)
    assert str(tmp_path / named) in message
    assert message.endswith(f"({source.title} is had at {source.url})")
    assert "\n" not in message


def test_one_missing_label(layout: tuple[str, Source, Path]) -> None:
    _, source, root = layout
    entry = source.entries(root, "val")[1]
    assert entry.label is not None
    entry.label.unlink()
    with pytest.raises(FileNotFoundError, match="every picture must have a label") as caught:
        source.entries(root, "trainval")
    assert f"got none for {entry.picture}: " in str(caught.value)
    assert str(entry.label) in str(caught.value)


@pytest.mark.parametrize("name", ["lip", "coco_stuff", "pascal_context_59"])
def test_one_missing_picture_of_a_list(name: str, tmp_path: Path) -> None:
    TREES[name](tmp_path)
    entry = SOURCES[name].entries(tmp_path, "val")[1]
    entry.picture.unlink()
    with pytest.raises(FileNotFoundError, match="every picture listed must exist") as caught:
        SOURCES[name].entries(tmp_path, "val")
    assert f"got none at {entry.picture} (" in str(caught.value)


def test_train_ids_are_not_taken_for_label_ids(tmp_path: Path) -> None:
    trees.cityscapes_tree(tmp_path)
    for path in tmp_path.glob("gtFine/*/*/*_labelIds.png"):
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    with pytest.raises(FileNotFoundError, match=r"\*_labelIds\.png are read, not \*_labelTrainIds"):
        SOURCES["cityscapes"].entries(tmp_path, "train")


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "images/training").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"got none in train of ADE20K under"):
        SOURCES["ade20k"].entries(tmp_path, "train")


def broken(change: Callable[[list[str]], list[str]], root: Path) -> Source:
    trees.pascal_context_tree(root, ending="mat")
    table = root / "labels.txt"
    trees.write_lines(table, change(table.read_text().splitlines()))
    return SOURCES["pascal_context_59"]


def test_categories_with_mistakes(tmp_path: Path) -> None:
    source = broken(lambda lines: [line.replace(": road", ": street") for line in lines], tmp_path)
    with pytest.raises(ValueError, match=r"all 59 names .*, got none of road in .*labels\.txt"):
        source.label_map_of(tmp_path)
    source = broken(lambda lines: ["road 324", *lines], tmp_path)
    with pytest.raises(ValueError, match=r"a number, a colon and a name, got 'road 324' in"):
        source.label_map_of(tmp_path)
    (tmp_path / "labels.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels\.txt \(PASCAL-Context 59 is had at https"):
        source.info(TRANSFORM, tmp_path)


def test_categories_are_found_by_name(tmp_path: Path) -> None:
    # Other numbers, a space inside a name, empty lines and spaces at the ends change nothing.
    def renumbered(lines: list[str]) -> list[str]:
        names = [line.partition(":")[2].replace("tvmonitor", "tv monitor") for line in lines]
        return [f"{number} : {name} " for number, name in enumerate(names, 101)] + ["", " "]

    source = broken(renumbered, tmp_path)
    classes = source.label_map_of(tmp_path).classes
    shifted = {number + 100: place for place, number in enumerate(trees.CONTEXT_NAMES)}
    assert {value: k for value, k in classes.items() if k != IGNORE_INDEX} == shifted
    assert set(classes) == {0, *range(101, 560)}


def test_folder_entries_are_exported(tmp_path: Path) -> None:
    trees.write_png(tmp_path / "images/a.png", np.zeros((2, 2)))
    assert folder_entries(tmp_path) == [Entry(tmp_path / "images/a.png", None, "a")]
