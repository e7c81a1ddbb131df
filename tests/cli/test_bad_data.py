# SPDX-License-Identifier: MIT
"""Data that is wrong: one sentence with file, value and what is allowed, and the run folder as it was."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ocnet.cli.main import main
from tests.data.trees import cityscapes_tree

SMALL = (
    "--data.name=cityscapes",
    "--data.augment.crop=[33,41]",
    "--model.name=tiny_local",
    "--model.norm=batchnorm",
    "--train.steps=2",
    "--train.batch_size=2",
    "--train.eval_every=1",
    "--train.device=cpu",
)


def label_of(root: Path) -> Path:
    return sorted((root / "gtFine" / "train").rglob("*_labelIds.png"))[0]


def picture_of(root: Path) -> Path:
    return sorted((root / "leftImg8bit" / "train").rglob("*.png"))[0]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    with Image.open(path) as opened:
        values = np.array(opened)
    Image.fromarray(change(values)).save(path)


def id_34(values: np.ndarray) -> np.ndarray:
    values[3, 5:8] = 34
    return values


def deep(values: np.ndarray) -> np.ndarray:
    wide = values.astype(np.uint16)
    wide[0, 0] = 26000
    return wide


def emptied(root: Path) -> None:
    for path in (root / "leftImg8bit" / "val").rglob("*.png"):
        path.unlink()


def doubled(root: Path) -> None:
    for path in (picture_of(root), label_of(root)):
        other = path.parent.parent / "othertown"
        other.mkdir()
        shutil.copy(path, other / path.name)


WRONG: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "corrupt picture": (lambda root: cut(picture_of(root)), ("must name a picture, got ", ".png")),
    "corrupt label": (lambda root: cut(label_of(root)), ("label must be a PNG, got ", ".png")),
    "16-bit label": (
        lambda root: rewrite(label_of(root), deep),
        ("must hold only the values 0 to 33 and 255, got 26000 (1 pixels) in ", "_labelIds.png"),
    ),
    "label id 34": (
        lambda root: rewrite(label_of(root), id_34),
        ("must hold only the values 0 to 33 and 255, got 34 (3 pixels) in ", "_labelIds.png"),
    ),
    "colour label": (
        lambda root: rewrite(label_of(root), lambda v: np.stack([v] * 3, axis=-1)),
        ("PNG with one channel of class numbers, got mode RGB in ", "_labelIds.png"),
    ),
    "size mismatch": (
        lambda root: rewrite(label_of(root), lambda values: values[:-2]),
        ("must have the size of its picture, 48 x 32, got 48 x 30 in ", "_labelIds.png"),
    ),
    "missing label": (lambda root: label_of(root).unlink(), ("label", "_leftImg8bit.png")),
    "empty split": (emptied, ("got none in val of Cityscapes under ", "data")),
    "duplicate names": (doubled, ("different names, got ", "othertown")),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree, and a run of it that could go on."""
    folder = tmp_path_factory.mktemp("sound")
    cityscapes_tree(folder / "data")
    words = (*SMALL, f"--data.root={folder / 'data'}", f"--train.run_dir={folder / 'run'}")
    assert main(["train", *words]) == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_data_is_one_sentence_and_the_run_folder_as_it_was(
    sound: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, parts = WRONG[kind]
    shutil.copytree(sound, tmp_path / "x")
    root, run = tmp_path / "x" / "data", tmp_path / "x" / "run"
    change(root)
    before = contents(run)
    words = (*SMALL, f"--data.root={root}", f"--train.run_dir={run}", "--train.resume=never")
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ocnet train: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    for part in parts:
        assert part in error
    if kind not in ("missing label", "empty split", "duplicate names"):
        assert error.endswith("(ocnet data check looks at all files)\n")
    assert contents(run) == before


def test_a_picture_that_breaks_later_leaves_the_last_checkpoint(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sound, tmp_path / "x")
    root, run = tmp_path / "x" / "data", tmp_path / "x" / "run"
    before = (run / "last.pt").read_bytes()
    for path in (root / "leftImg8bit" / "train").rglob("*.png"):
        cut(path)
    # Nothing is checked beforehand, so the worker meets it.
    words = (*SMALL, "--data.check=0", "--data.workers=1", "--train.steps=2", "--train.seed=5")
    folders = (f"--data.root={root}", f"--train.run_dir={run}", "--train.resume=never")
    capsys.readouterr()
    assert main(["train", *words, *folders]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "must name a picture" in error
    assert (run / "last.pt").read_bytes() == before
