# SPDX-License-Identifier: MIT
"""``ocnet train``, ``eval`` and ``predict`` on one small run."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from ocnet.cli.main import main
from ocnet.cli.tables import print_evaluation
from ocnet.data import load_photo, read_picture
from ocnet.engine.run import load_run
from ocnet.evaluation import ConfusionMatrix, Evaluation

ARGUMENTS = [
    "--data.name=mosaics",
    "--data.mosaics.size=32",
    "--data.mosaics.train_length=6",
    "--data.mosaics.val_length=3",
    "--model.name=tiny_base_oc",
    "--model.options.backend=reference",
    "--train.batch_size=2",
    "--train.steps=2",
    "--train.device=cpu",
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", *ARGUMENTS, f"--train.run_dir={path}"]) == 0
    return path


def test_train_prints_progress_scores_and_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *ARGUMENTS, f"--train.run_dir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "tiny_base_oc  step 2/2  loss" in out
    assert "hubble_deep_field" in out
    assert "flat pixels right" in out
    assert str(tmp_path) in out.replace("\n", "")


def test_eval_scores_what_train_scored(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--run", str(run_dir), "--device", "cpu"]) == 0
    assert "mIoU" in capsys.readouterr().out
    assert (run_dir / "eval_val.csv").read_text() == (run_dir / "per_class.csv").read_text()


def test_eval_of_the_training_split(run_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    words = ["--run", str(run_dir), "--split", "train", "--csv", str(path), "--device", "cpu"]
    assert main(["eval", *words]) == 0
    with path.open(newline="") as file:
        assert sum(int(row["pixels"]) for row in csv.DictReader(file)) == 6 * 32 * 32


def test_predict_labels_a_photograph(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = load_photo("chelsea")[:75, :100]
    Image.fromarray(photo).save(tmp_path / "photo.jpg")
    out = tmp_path / "deep" / "classes.png"
    words = ["--image", str(tmp_path / "photo.jpg"), "--out", str(out), "--max-side", "64"]
    assert main(["predict", "--run", str(run_dir), "--device", "cpu", *words]) == 0

    run = load_run(run_dir, "cpu")
    with Image.open(out) as opened:
        assert opened.mode == "P"
        classes = np.array(opened)
        colours = np.array(opened.convert("RGB"))
    assert classes.shape == (75, 100)
    assert classes.max() < 5
    np.testing.assert_array_equal(colours, np.array(run.info.palette)[classes])
    mixed = read_picture(out.with_name("classes_overlay.png"))
    jpeg = read_picture(tmp_path / "photo.jpg").astype(float)
    np.testing.assert_allclose(mixed, (jpeg + colours) / 2, rtol=0, atol=0.5)
    printed = capsys.readouterr().out
    shares = [float(line.split()[1]) for line in printed.splitlines() if "% of the pixels" in line]
    # Rounded to one digit each.
    assert sum(shares) == pytest.approx(100, abs=0.05 * 5)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ["--image", "no.jpg", "--out", "x.png"],
            "read_picture: path must name a file, got no.jpg",
        ),
        (["--image", "no.jpg", "--out", "x.jpg"], "predict: --out must end in .png, got x.jpg"),
        (
            ["--image", "no.jpg", "--out", "x.png", "--max-side", "-1"],
            "predict: --max-side must be at least 0, got -1",
        ),
    ],
)
def test_predict_refuses_in_one_line(
    run_dir: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert main(["predict", "--run", str(run_dir), *words]) == 2
    assert capsys.readouterr().err == f"ocnet predict: {complaint}\n"


def test_eval_refuses_a_folder_that_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--run", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ocnet eval: load_run: path must be a run folder of ocnet train, got ")
    assert error.count("\n") == 1


def test_train_refuses_a_wrong_key_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*ARGUMENTS, f"--train.run_dir={tmp_path / 'run'}", "--train.stepz=3"]
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ocnet train: config: train.stepz must be a known key (run_dir, steps")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_table_shows_a_dash_for_what_is_not_there() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([0, 0]), torch.tensor([0, 0]))
    out = io.StringIO()
    print_evaluation(Evaluation(matrix), ("sky", "sea"), Console(file=out, width=80))
    rows = {line.split()[1]: line for line in out.getvalue().splitlines() if "│" in line}
    assert "100.00 %" in rows["sky"]
    assert rows["sea"].count(" - ") == 3
    assert "mIoU 100.00 %  pixel accuracy 100.00 %" in out.getvalue()
