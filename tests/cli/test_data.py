# SPDX-License-Identifier: MIT
"""``ocnet data check`` on a folder of pictures, from a config to files and an exit status."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ocnet.cli.main import main

NAMES = ["sky", "road", "car"]


def write_split(root: Path, split: str, count: int) -> None:
    rng = np.random.default_rng(len(split))
    for kind in ("images", "labels"):
        (root / split / kind).mkdir(parents=True)
    for number in range(count):
        pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        label = (np.arange(24 * 32) // 7 % 3).reshape(24, 32).astype(np.uint8)
        label[:4, :4] = 255
        Image.fromarray(pixels).save(root / split / "images" / f"{number}.png")
        Image.fromarray(label).save(root / split / "labels" / f"{number}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_split(tmp_path / "data", "train", 3)
    write_split(tmp_path / "data", "val", 2)
    return tmp_path / "data"


@pytest.fixture
def config(tmp_path: Path, root: Path) -> Path:
    """Write a config with nothing but its data."""
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump({"data": {"name": "folder", "root": str(root), "class_names": NAMES}})
    )
    return path


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith(("┏", "┃", "┡", "│", "└"))]


def test_good_data(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "check"
    assert main(["data", "check", "--config", str(config), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert lines(printed.out) == [
        "train: 3 of 3 pictures, 3 labels, 32 x 24 to 32 x 24, mostly 32 x 24, 2.1% of the pixels ignored",
        "val: 2 of 2 pictures, 2 labels, 32 x 24 to 32 x 24, mostly 32 x 24, 2.1% of the pixels ignored",
        "0 problems, 0 warnings",
        f"written to {out}: check.json, labels.csv, contact_sheet.png",
    ]
    assert all(any(f"│ {name} " in line for line in printed.out.splitlines()) for name in NAMES)
    assert json.loads((out / "check.json").read_text())["ok"] is True
    with (out / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    pixels = [sum(int(r["pixels"]) for r in rows if r["split"] == s) for s in ("train", "val")]
    assert pixels == [3 * 24 * 32, 2 * 24 * 32]
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.size[0] == 1536


def test_bad_data(
    config: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / "val" / "labels" / "1.png"
    Image.fromarray(np.full((24, 32), 34, dtype=np.uint8)).save(path)
    (root / "train" / "images" / "2.png").write_text("hello")
    run_dir, out = tmp_path / "run", tmp_path / "check"
    words = ["--config", str(config), f"--train.run_dir={run_dir}", "--out", str(out)]
    assert main(["data", "check", *words]) == 1
    said = lines(capsys.readouterr().out)
    assert said[2].startswith("problem: read_picture: path must name a picture, got ")
    assert said[3] == (
        "problem: dataset: label must hold only the values 0 to 2 and 255, got 34 (768 pixels) in "
        f"{path}"
    )
    assert said[4].startswith(
        "suggestion: labels have 4 values besides 255 for 3 classes; say in data."
    )
    assert said[5] == "2 problems, 0 warnings"
    found = json.loads((out / "check.json").read_text())["problems"]
    assert [each["kind"] for each in found] == ["unreadable picture", "unknown value"]
    assert not run_dir.exists()


def test_a_run_folder_is_left_alone(config: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").write_text("{}\n")
    before = (run_dir.stat().st_mtime_ns, (run_dir / "metrics.jsonl").stat().st_mtime_ns)
    words = ["--config", str(config), f"--train.run_dir={run_dir}", "--out", str(tmp_path / "out")]
    assert main(["data", "check", *words]) == 0
    assert [path.name for path in run_dir.iterdir()] == ["metrics.jsonl"]
    assert (run_dir.stat().st_mtime_ns, (run_dir / "metrics.jsonl").stat().st_mtime_ns) == before


def test_an_offered_map_makes_the_check_pass(
    config: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (root / "train" / "labels").iterdir():
        label = np.array(Image.open(path))
        Image.fromarray(np.where(label == 255, 0, label + 1).astype(np.uint8)).save(path)
    out = tmp_path / "out"
    words = ["data", "check", "--config", str(config), "--splits", "train", "--out", str(out)]
    assert main(words) == 1
    assert "label_map: {0: 255, 1: 0, 2: 1, 3: 2, 255: 255}\n" in capsys.readouterr().out
    offered = yaml.safe_load((out / "label_map.yaml").read_text())["label_map"]
    assert offered == {0: 255, 1: 0, 2: 1, 3: 2, 255: 255}

    content = yaml.safe_load(config.read_text())
    content["data"]["label_map"] = offered
    config.write_text(yaml.safe_dump(content))
    assert main(words) == 0
    # Of the first check, and not true any more.
    assert not (out / "label_map.yaml").exists()


def test_many_problems_of_one_kind_are_summed_up(
    config: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3, 9):
        Image.new("RGB", (32, 24), (number, 0, 0)).save(root / "train" / "images" / f"{number}.png")
    for number in range(9):
        (root / "train" / "labels" / f"{number}.png").write_text("hello")
    out = tmp_path / "out"
    words = ["--config", str(config), "--splits", "train", "--out", str(out)]
    assert main(["data", "check", *words]) == 1
    said = lines(capsys.readouterr().out)
    problems = [line for line in said if line.startswith("problem: ")]
    assert [number for number, line in enumerate(problems) if f"{number}.png (" in line] == [
        *range(5)
    ]
    assert problems[5:] == ["problem: unreadable label: 4 more, all of them in check.json"]
    assert len(json.loads((out / "check.json").read_text())["problems"]) == 9
    assert "no contact sheet: there is no picture with a label that can be read" in said
    assert not (out / "contact_sheet.png").exists()


def test_limit_and_test_split(
    config: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split(root, "test", 3)
    for path in (root / "test" / "labels").iterdir():
        path.unlink()
    (root / "test" / "labels").rmdir()
    words = ["--splits", "test", "--limit", "2", "--out", str(tmp_path / "out")]
    assert main(["data", "check", *words, "--config", str(config)]) == 0
    assert "test: 2 of 3 pictures, 0 labels" in capsys.readouterr().out


def test_without_matplotlib_the_rest_is_written(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "out"
    assert main(["data", "check", "--config", str(config), "--out", str(out)]) == 0
    assert "no contact sheet: report: matplotlib must be installed" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["check.json", "labels.csv"]


def test_the_report_has_a_place_of_its_own(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", "--config", str(config), "--limit", "1"]) == 0
    assert (tmp_path / "runs" / "data_check" / "folder" / "check.json").is_file()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda root: None, "examine: limit must be at least 1, got 0"),
        (
            lambda root: (root / "val" / "labels" / "0.png").unlink(),
            "dataset: every picture must have a label, got none for 0.png",
        ),
        (
            lambda root: [path.unlink() for path in (root / "val" / "images").iterdir()],
            "dataset: folder must have pictures, got none in",
        ),
        (
            lambda root: Image.new("RGB", (4, 4)).save(root / "val" / "images" / "0.jpg"),
            "dataset: pictures must have different stems, got 0.jpg and 0.png",
        ),
    ],
)
def test_what_is_no_data_set_is_refused_in_one_line(  # type: ignore[no-untyped-def]
    config: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change, complaint
) -> None:
    change(root)
    out = tmp_path / "out"
    words = ["--config", str(config), "--out", str(out)]
    if "limit" in complaint:
        words += ["--limit", "0"]
    assert main(["data", "check", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"ocnet data: {complaint}")
    assert error.count("\n") == 1
    assert not out.exists()


def test_wrong_keys_are_refused_and_help_is_there(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", "--config", str(config), "--data.roots=x"]) == 2
    assert "config: data.roots must be a known key" in capsys.readouterr().err
    for words in (["data", "--help"], ["data", "check", "--help"]):
        with pytest.raises(SystemExit) as done:
            main(words)
        assert done.value.code == 0
    assert "--data.<key>=<value>" in " ".join(capsys.readouterr().out.split())
