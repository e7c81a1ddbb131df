# SPDX-License-Identifier: MIT
"""Every published data set in its own layout: recipes with slim networks, from training to submission."""

import csv
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ocnet.cli.main import main
from ocnet.data.sets import SOURCES
from ocnet.engine.config_files import load_config
from tests.data.trees import SIZE, TREES
from tests.models.slim import slim

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# One recipe of each code that has one for the set.
RECIPES = (
    "cityscapes/resnet101_base_oc_ohem",
    "cityscapes/openseg_isa",
    "cityscapes/seg_hrnet_w48_ocr",
    "ade20k/openseg_ocr_ohem",
    "lip/ce2p_asp_oc",
    "lip/seg_hrnet_w48_ocr",
    "coco_stuff/openseg_ocr",
    "pascal_context/openseg_asp_ocr",
    "pascal_context/seg_hrnet_w48_ocr_60",
)
SMALL = (
    "--model.norm=batchnorm",
    "--model.weights=null",
    "--data.workers=0",
    "--data.augment.crop=[33,41]",
    "--eval.tile=[33,41]",
    "--train.steps=2",
    "--train.batch_size=2",
    "--train.eval_every=2",
    "--train.device=cpu",
)


@pytest.fixture(autouse=True)
def _slim_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, **options: Any) -> torch.nn.Module:
        return slim(name, **options)

    monkeypatch.setattr("ocnet.engine.run.create", create)


def small(recipe: str) -> list[str]:
    """Return the arguments of a recipe on pictures of some 40 pixels."""
    path = CONFIGS / f"{recipe}.yaml"
    config = load_config(path)
    words = [f"--config={path}", *SMALL]
    for section, options in (("data.augment", config.data.augment), ("eval", config.eval)):
        if options.resize_short is not None:
            words.append(f"--{section}.resize_short=30")
        if options.resize_long is not None:
            words.append(f"--{section}.resize_long=48")
        if options.resize_to is not None:
            words.append(f"--{section}.resize_to=[40,40]")
    return words


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_from_training_to_submission(
    tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = load_config(CONFIGS / f"{recipe}.yaml").data.name
    root, run = tmp_path / "data", tmp_path / "run"
    TREES[name](root)
    train = [*small(recipe), f"--data.root={root}", f"--train.run_dir={run}"]
    assert main(["data", "check", *train, "--out", str(tmp_path / "check")]) == 0
    assert main(["train", *train]) == 0

    multi_scale = ["--eval.scales=[0.75,1.25]", "--eval.flip=true"]
    assert main(["eval", "--run", str(run), *multi_scale, "--device=cpu"]) == 0
    with (run / "eval_val.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(SOURCES[name].class_names)
    assert sum(int(row["pixels"]) for row in rows) > 0

    # The sets without a test split of their own submit what they validate on.
    split = "test" if "test" in SOURCES[name].splits else "val"
    assert main(["submit", "--run", str(run), f"--split={split}", "--device=cpu"]) == 0
    label_map = SOURCES[name].label_map
    with zipfile.ZipFile(run / f"submit_{split}.zip") as archive:
        names = archive.namelist()
    assert names == sorted(path.name for path in (run / f"submit_{split}").iterdir())
    assert names
    for path in (run / f"submit_{split}").iterdir():
        with Image.open(path) as opened:
            assert opened.mode == "P"
            values = np.array(opened)
        assert values.shape == SIZE
        assert label_map.unknown(values) == {}
        assert 255 not in label_map.decode(values, "")
    assert not re.search(r"\bnan\b", capsys.readouterr().out)


@pytest.fixture
def cityscapes(tmp_path: Path) -> tuple[Path, Path]:
    """A tree of Cityscapes, and a run on it."""
    root, run = tmp_path / "data", tmp_path / "run"
    TREES["cityscapes"](root)
    words = [*small(RECIPES[0]), f"--data.root={root}", f"--train.run_dir={run}"]
    assert main(["train", *words]) == 0
    return root, run


def test_cityscapes_is_submitted_as_label_ids_under_the_names_of_its_pictures(
    tmp_path: Path, cityscapes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = cityscapes
    # Without its secret labels the test split is as the server has it.
    shutil.rmtree(root / "gtFine" / "test", ignore_errors=True)
    capsys.readouterr()
    assert main(["submit", "--run", str(run), "--out", str(tmp_path / "s"), "--device=cpu"]) == 0
    assert f"pictures written to {tmp_path / 's'} and {tmp_path / 's.zip'}" in (
        capsys.readouterr().out.replace("\n", "")
    )
    tests = sorted((root / "leftImg8bit" / "test").rglob("*.png"))
    written = sorted((tmp_path / "s").iterdir())
    assert [path.name for path in written] == sorted(path.name for path in tests)
    official = {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}
    for path in written:
        assert set(np.unique(np.array(Image.open(path)))) <= official
    # A folder with something else in it is not sent.
    (tmp_path / "s" / "notes.txt").write_text("x")
    assert main(["submit", "--run", str(run), "--out", str(tmp_path / "s"), "--device=cpu"]) == 2
    assert "submit: folder must have nothing but earlier pictures" in capsys.readouterr().err


def test_eval_of_a_split_without_labels_is_refused(
    cityscapes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = cityscapes
    assert main(["eval", "--run", str(run), "--split=test", "--device=cpu"]) == 2
    assert "dataset must have labels, got pictures without them" in capsys.readouterr().err
