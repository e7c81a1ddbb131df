# SPDX-License-Identifier: MIT
"""``ocnet train``, ``eval`` and ``predict`` on one small run."""

import csv
import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from ocnet import report
from ocnet.cli.main import main
from ocnet.cli.tables import print_evaluation
from ocnet.data import load_photo, read_picture
from ocnet.engine.config_files import load_config
from ocnet.engine.datasets import build_datasets
from ocnet.engine.run import load_run
from ocnet.evaluation import ConfusionMatrix, Evaluation, InferenceOptions, Predictor

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


def test_eval_draws_pictures_with_truth_errors_and_attention(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--out", str(tmp_path / "out"), "--pictures", "2", "--csv", str(tmp_path / "t.csv")]
    assert main(["eval", "--run", str(run_dir), "--device", "cpu", *words]) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    # Three pictures, of which the first and the middle one are drawn.
    assert written == {f"mosaic-val-0-{index}.png" for index in range(3)} | {
        f"mosaic-val-0-{index}_{what}.png" for index in (0, 1) for what in ("errors", "attention")
    }
    _, val_set = build_datasets(load_config(run_dir / "config.yaml").data)
    matrix = ConfusionMatrix(5)
    for index in range(3):
        with Image.open(tmp_path / "out" / f"mosaic-val-0-{index}.png") as opened:
            matrix.update(torch.from_numpy(np.array(opened)).long(), val_set[index].label)
    rows = matrix.per_class_table(val_set.class_names)
    with (tmp_path / "t.csv").open(newline="") as file:
        counted = {row["name"]: int(row["pixels"]) for row in csv.DictReader(file)}
    assert counted == {row.name: row.pixels for row in rows}
    assert f"mIoU {100 * matrix.mean_iou():.2f} %" in capsys.readouterr().out


def test_eval_without_matplotlib_is_refused_before_anything_is_computed(
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = ["--out", str(tmp_path / "out"), "--pictures", "1", "--csv", str(tmp_path / "t.csv")]
    assert main(["eval", "--run", str(run_dir), "--device", "cpu", *words]) == 2
    assert "report: matplotlib must be installed to draw pictures" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_eval_takes_overrides_of_the_config(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "--run", str(run_dir), "--device", "cpu", "--csv", str(tmp_path / "t.csv")]
    assert main([*words, "--data.mosaics.val_length=2", "--eval.flip=true"]) == 0
    with (tmp_path / "t.csv").open(newline="") as file:
        assert sum(int(row["pixels"]) for row in csv.DictReader(file)) == 2 * 32 * 32
    capsys.readouterr()
    assert main([*words, "--eval.fliip=true"]) == 2
    assert "config: eval.fliip must be a known key" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--flip"])


def test_eval_of_weights_from_elsewhere(run_dir: Path, tmp_path: Path) -> None:
    shutil.copy(run_dir / "config.yaml", tmp_path / "c.yaml")
    shutil.copy(run_dir / "weights.safetensors", tmp_path / "w.safetensors")
    words = ["--config", str(tmp_path / "c.yaml"), "--weights", str(tmp_path / "w.safetensors")]
    assert main(["eval", *words, "--device", "cpu"]) == 0
    assert (tmp_path / "eval_val.csv").read_text() == (run_dir / "per_class.csv").read_text()


@pytest.mark.parametrize(
    ("words", "got"),
    [
        ([], "neither"),
        (["--config", "a.yaml"], "--config"),
        (["--run", "a", "--weights", "b"], "--run and --weights"),
    ],
)
def test_a_network_is_named_in_one_of_two_ways(
    capsys: pytest.CaptureFixture[str], words: list[str], got: str
) -> None:
    assert main(["eval", *words]) == 2
    assert capsys.readouterr().err == (
        "ocnet eval: eval: a network must be named by --run, or by --config and --weights, "
        f"got {got}\n"
    )


def test_mosaics_have_nothing_to_submit(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--run", str(run_dir), "--out", str(tmp_path / "s"), "--device", "cpu"]
    assert main(["submit", *words]) == 2
    assert "data set with a test split, got mosaics" in capsys.readouterr().err
    assert main(["submit", *words, "--split", "val"]) == 2
    assert "data set of files, got mosaics" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


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


def test_predict_sees_pictures_as_the_config_says(
    run_dir: Path, tmp_path: Path, photo: Path
) -> None:
    out = tmp_path / "x.png"
    words = ["--run", str(run_dir), "--image", str(photo), "--out", str(out), "--device", "cpu"]
    assert main(["predict", *words, "--max-side", "0"]) == 0
    whole = np.array(Image.open(out))
    options = ["--eval.resize_short=40", "--eval.flip=true"]
    assert main(["predict", *words, *options]) == 0
    run = load_run(run_dir, "cpu")
    predictor = Predictor(
        run.model, InferenceOptions(resize_short=40, flip=True), num_classes=run.info.num_classes
    )
    expected = predictor.classes(run.info.picture_transform(read_picture(photo)))
    found = np.array(Image.open(out))
    np.testing.assert_array_equal(found, expected.numpy())
    assert not np.array_equal(found, whole)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(load_photo("chelsea")[:75, :100]).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("tiny_base_oc", 1),
        ("tiny_pyramid_oc", 4),
        ("tiny_asp_oc", 1),
        ("tiny_isa", 2),
        ("tiny_ocr", 0),
        ("tiny_asp_ocr", 0),
    ],
)
def test_predict_draws_what_the_network_looks_at(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows: int
) -> None:
    drawn: list[tuple[str, int]] = []
    for kind in ("attention_figure", "regions_figure"):
        draw = getattr(report, kind)

        def note(path, *args, kind=kind, draw=draw, **kwargs):  # type: ignore[no-untyped-def]
            drawn.append((kind, len(args[0])))
            draw(path, *args, **kwargs)

        monkeypatch.setattr(report, kind, note)
    run = tmp_path / "run"
    words = [f"--model.name={name}" if "model.name" in word else word for word in ARGUMENTS]
    assert main(["train", *words, f"--train.run_dir={run}"]) == 0
    out = tmp_path / "classes.png"
    words = ["--image", str(photo), "--out", str(out), "--max-side", "64", "--attention"]
    assert main(["predict", "--run", str(run), "--device", "cpu", *words]) == 0
    if rows:
        assert drawn == [("attention_figure", rows)]
    else:
        assert [kind for kind, _ in drawn] == ["regions_figure"]
    with Image.open(tmp_path / "classes_attention.png") as picture:
        assert min(picture.size) > 200


def test_query_points_can_be_chosen(
    run_dir: Path, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(report, "attention_figure", lambda path, rows, title: seen.append(rows))
    words = ["--image", str(photo), "--out", str(tmp_path / "x.png"), "--max-side", "64"]
    points = ["--attention", "--points", "0,0", "74,99", "30,50"]
    assert main(["predict", "--run", str(run_dir), "--device", "cpu", *words, *points]) == 0
    ((row,),) = seen
    assert row.points.tolist() == [[0, 0], [74, 99], [30, 50]]
    # 75 x 100 pixels are shown as 48 x 64, and those are 12 x 16 features.
    assert row.maps.shape == (3, 12, 16)
    assert [caption.split(":")[0] for caption in row.captions] == ["query 1", "query 2", "query 3"]
    np.testing.assert_allclose(row.maps.sum((1, 2)), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--attention", "--points", "75,0"], r"map of 75 rows and 100 columns, got (75, 0)"),
        (["--points", "1,1"], "predict: --points must come with --attention, got it alone"),
    ],
)
def test_wrong_query_points_are_refused_and_nothing_is_written(
    run_dir: Path,
    tmp_path: Path,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    complaint: str,
) -> None:
    out = ["--image", str(photo), "--out", str(tmp_path / "out" / "x.png"), "--device", "cpu"]
    assert main(["predict", "--run", str(run_dir), *out, *words]) == 2
    assert complaint in capsys.readouterr().err
    assert list((tmp_path / "out").glob("*")) == []


def test_points_that_are_none_are_refused(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--image", "no.jpg", "--out", "x.png", "--attention", "--points", "1;2"]
    with pytest.raises(SystemExit):
        main(["predict", "--run", str(run_dir), *words])
    assert "must be ROW,COLUMN in whole pixels, got 1;2" in capsys.readouterr().err


def test_a_network_that_attends_to_nothing_is_refused(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model.name=tiny_local" if "model.name" in word else word for word in ARGUMENTS]
    run, out = tmp_path / "run", tmp_path / "x.png"
    assert main(["train", *words, f"--train.run_dir={run}"]) == 0
    capsys.readouterr()
    words = ["--image", str(photo), "--out", str(out), "--attention", "--device", "cpu"]
    assert main(["predict", "--run", str(run), *words]) == 2
    error = capsys.readouterr().err
    assert "model must have object context in one of its forms, got LocalNet without any" in error
    assert not out.exists()


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


def test_table_shows_absent_classes_as_absent() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([0, 0]), torch.tensor([0, 0]))
    out = io.StringIO()
    print_evaluation(Evaluation(matrix), ("sky", "sea"), Console(file=out, width=80))
    rows = {line.split()[1]: line for line in out.getvalue().splitlines() if "│" in line}
    assert "100.00 %" in rows["sky"]
    assert "absent" in rows["sea"]
    assert "%" not in rows["sea"]
    assert "mIoU 100.00 % (of 1 classes; 1 absent)  pixel accuracy 100.00 %" in out.getvalue()
