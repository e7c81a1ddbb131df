# SPDX-License-Identifier: MIT
"""The loop, end to end on small mosaics and on pictures of one's own."""

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ocnet.engine.config import RunConfig
from ocnet.engine.config_files import load_config, parse_config
from ocnet.engine.run import load_run, pick_device
from ocnet.engine.trainer import TrainResult, train, use_bf16
from ocnet.modules import ABN, norm_layer

pytestmark = pytest.mark.usefixtures("one_thread")

# Two samples of 32 pixels at a time: a step takes some milliseconds.
SMALL = (
    "--data.name=mosaics",
    "--data.mosaics.size=32",
    "--data.mosaics.train_length=10",
    "--data.mosaics.val_length=2",
    "--train.batch_size=2",
    "--train.steps=6",
    "--train.eval_every=2",
    "--train.log_every=1",
    "--train.device=cpu",
)
# Explicit, so that nothing depends on which libraries are built.
BASE_OC = ("--model.name=tiny_base_oc", "--model.options.backend=reference")


def config(run_dir: Path, *more: str) -> RunConfig:
    name = () if any("model.name" in word for word in more) else ("--model.name=tiny_local",)
    return parse_config([*SMALL, f"--train.run_dir={run_dir}", *name, *more])


def weights(result: TrainResult) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in result.model.state_dict().items()}


def assert_equal(one: Any, two: Any) -> None:
    """Compare nested states to the bit."""
    assert type(one) is type(two)
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_equal(one[key], two[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for first, second in zip(one, two, strict=True):
            assert_equal(first, second)
    elif isinstance(one, Tensor):
        assert torch.equal(one, two)
    else:
        assert one == two


def without_speed(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in record.items() if k != "images_per_s"} for record in history]


class Stop(Exception):
    """Stands for whatever ends a process early."""


def stop_at(step: int) -> Any:
    def on_step(record: dict[str, float]) -> None:
        if record["step"] == step:
            raise Stop

    return on_step


def test_a_run_leaves_everything_in_its_folder(tmp_path: Path) -> None:
    run_dir = tmp_path / "deep" / "run"
    settings = config(run_dir)
    seen: list[dict[str, float]] = []
    result = train(settings, on_step=seen.append)

    assert {path.name for path in run_dir.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "metrics.csv",
        "run.json",
        "per_class.csv",
        "last.pt",
        "weights.safetensors",
    }
    assert load_config(run_dir / "config.yaml") == settings
    assert [record["step"] for record in result.history] == [1, 2, 3, 4, 5, 6]
    assert seen == result.history
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history
    with (run_dir / "metrics.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [1, 2, 3, 4, 5, 6]
    facts = json.loads((run_dir / "run.json").read_text())
    again = f"--config {run_dir / 'config.yaml'} --train.run_dir={run_dir}-again"
    assert facts["repeat"] == f"ocnet train {again}"
    assert facts["versions"]["torch"] == torch.__version__
    for record in result.history:
        assert {"loss", "lr", "images_per_s"} <= record.keys()
        assert ("miou" in record) == (record["step"] % 2 == 0)
    assert result.history[-1]["miou"] == result.evaluation.mean_iou
    assert "flat_accuracy" in result.history[-1]
    with (run_dir / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(result.info.class_names)
    assert sum(int(row["pixels"]) for row in rows) == 2 * 32 * 32
    assert not result.model.training


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    result = train(config(tmp_path / "run", *BASE_OC))
    run = load_run(tmp_path / "run", device="cpu")
    assert run.info.class_names == result.info.class_names
    assert_equal(dict(run.model.state_dict()), dict(result.model.state_dict()))
    image = torch.randn(1, 1, 32, 32)
    assert torch.equal(run.model(image).main, result.model(image).main)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    result = train(config(tmp_path, "--train.steps=40", "--train.eval_every=40"))
    losses = [record["loss"] for record in result.history]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_equal_configs_give_equal_weights_whatever_the_caller_drew(tmp_path: Path) -> None:
    one = weights(train(config(tmp_path / "one")))
    torch.rand(17)
    before = torch.get_rng_state()
    two = weights(train(config(tmp_path / "two")))
    assert torch.equal(torch.get_rng_state(), before)
    assert_equal(one, two)
    other = weights(train(config(tmp_path / "other", "--train.seed=1")))
    first = next(name for name, value in one.items() if value.ndim == 4)
    assert not torch.equal(one[first], other[first])


@pytest.mark.parametrize(
    "options",
    [
        BASE_OC,
        ("--optim.name=sgd", "--optim.lr=0.01", "--optim.schedule=poly", "--optim.clip_norm=1"),
    ],
    ids=["adamw-one_cycle", "sgd-poly-clip"],
)
@pytest.mark.parametrize("stop", [4, 5])
def test_a_stopped_run_goes_on_to_the_same_bits(
    tmp_path: Path, options: tuple[str, ...], stop: int
) -> None:
    whole = train(config(tmp_path / "whole", *options))
    stopped = config(tmp_path / "stopped", *options)
    with pytest.raises(Stop):
        train(stopped, on_step=stop_at(stop))
    torch.rand(9)
    continued: list[dict[str, float]] = []
    result = train(stopped, on_step=continued.append)

    # Checkpoints come every second step.
    assert [record["step"] for record in continued] == [5, 6]
    assert_equal(weights(result), weights(whole))
    assert without_speed(result.history) == without_speed(whole.history)
    states = [
        torch.load(path / "last.pt", weights_only=True)
        for path in (tmp_path / "whole", tmp_path / "stopped")
    ]
    for state in states:
        state["history"] = without_speed(state["history"])
    assert_equal(states[0], states[1])
    lines = (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_complete_run_is_scored_but_not_trained_again(tmp_path: Path) -> None:
    first = train(config(tmp_path))
    seen: list[dict[str, float]] = []
    again = train(config(tmp_path), on_step=seen.append)
    assert seen == []
    assert_equal(weights(again), weights(first))
    assert torch.equal(again.evaluation.confusion.counts, first.evaluation.confusion.counts)
    assert again.history == first.history


def test_never_resume_starts_over(tmp_path: Path) -> None:
    train(config(tmp_path, "--train.seed=1"))
    seen: list[dict[str, float]] = []
    again = config(tmp_path, "--train.resume=never")
    result = train(again, on_step=seen.append)
    assert len(seen) == len(result.history) == 6


def test_a_folder_with_another_run_is_left_alone(tmp_path: Path) -> None:
    train(config(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"train\.steps must be 6 to continue the run in .* got 8"):
        train(config(tmp_path, "--train.steps=8"))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_logging_can_change_in_a_continued_run(tmp_path: Path) -> None:
    whole = weights(train(config(tmp_path / "whole")))
    stopped = config(tmp_path / "stopped")
    with pytest.raises(Stop):
        train(stopped, on_step=stop_at(4))
    changed = dataclasses.replace(
        stopped, train=dataclasses.replace(stopped.train, log_every=5, eval_every=100)
    )
    assert_equal(weights(train(changed)), whole)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_neither_workers_nor_evaluations_have_a_part_in_the_weights(tmp_path: Path) -> None:
    one = weights(train(config(tmp_path / "one")))
    two = weights(train(config(tmp_path / "two", "--data.workers=1", "--train.eval_every=100")))
    assert_equal(one, two)


@pytest.mark.parametrize(
    "options",
    [("--train.precision=bf16",), ("--train.channels_last=true",)],
    ids=["bf16", "channels_last"],
)
def test_precision_and_layout_take_effect(tmp_path: Path, options: tuple[str, ...]) -> None:
    result = train(config(tmp_path, *options, *BASE_OC))
    assert all(np.isfinite(record["loss"]) for record in result.history)
    assert next(result.model.parameters()).dtype == torch.float32
    layouts = {
        parameter.is_contiguous(memory_format=torch.channels_last)
        for parameter in result.model.parameters()
        if parameter.ndim == 4
    }
    assert layouts == {True} or options[0] != "--train.channels_last=true"


def test_bf16_changes_the_sums_but_not_the_outcome(tmp_path: Path) -> None:
    losses = {
        precision: train(config(tmp_path / precision, f"--train.precision={precision}")).history[0][
            "loss"
        ]
        for precision in ("fp32", "bf16")
    }
    assert losses["fp32"] != losses["bf16"]
    # One forward pass; relative rounding of bf16 is 2^-8 in each of about ten layers.
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=10 * 2**-8)


def test_the_cpu_computes_in_fp32_unless_told() -> None:
    settings = config(Path("x")).train
    assert not use_bf16(settings, torch.device("cpu"))
    assert use_bf16(dataclasses.replace(settings, precision="bf16"), torch.device("cpu"))


def test_clipping_bounds_the_update(tmp_path: Path) -> None:
    sgd = ("--optim.name=sgd", "--optim.momentum=0", "--optim.weight_decay=0", "--optim.lr=1",
           "--optim.schedule=poly", "--train.steps=1")  # fmt: skip
    # A rate this small leaves the weights as drawn.
    drawn = train(config(tmp_path / "drawn", *sgd, "--optim.lr=1e-30"))
    moved = train(config(tmp_path / "moved", *sgd, "--optim.clip_norm=0.001"))
    free = train(config(tmp_path / "free", *sgd))

    def distance(result: TrainResult) -> float:
        pairs = zip(result.model.parameters(), drawn.model.parameters(), strict=True)
        return (
            float(sum((a.detach().double() - b.detach().double()).square().sum() for a, b in pairs))
            ** 0.5
        )

    # Rounding of the weights, up to about 1, adds a little to the bound.
    assert distance(moved) < 0.0011
    assert distance(free) > 0.01


def test_infinite_losses_end_the_run_and_name_the_step(tmp_path: Path) -> None:
    wild = config(
        tmp_path,
        "--optim.name=sgd",
        "--optim.lr=1e30",
        "--optim.schedule=poly",
        "--train.log_every=3",
        "--train.eval_every=6",
    )
    with pytest.raises(
        RuntimeError, match=r"^train: loss must stay finite, got (nan|inf) at step [23] "
    ):
        train(wild)
    assert not (tmp_path / "last.pt").exists()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two splits of a data set of one's own, red above blue."""
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (tmp_path / split / folder).mkdir(parents=True)
        for number in range(3):
            height, width = 40 + 5 * number, 48
            label = np.zeros((height, width), dtype=np.uint8)
            label[height // 2 :] = 1
            colours = np.array([[200, 20, 20], [20, 20, 200]], dtype=np.uint8)[label]
            Image.fromarray(colours).save(tmp_path / split / "images" / f"{number}.png")
            Image.fromarray(label).save(tmp_path / split / "labels" / f"{number}.png")
    return tmp_path


def own(root: Path, *more: str) -> RunConfig:
    return parse_config(
        [
            *SMALL,
            "--data.name=folder",
            f"--data.root={root}",
            "--data.class_names=[above,below]",
            "--data.augment.crop=[32,32]",
            "--model.name=tiny_local",
            "--optim.lr=0.02",
            f"--train.run_dir={root / 'run'}",
            *more,
        ]
    )


def test_pictures_of_ones_own_are_learned(pictures: Path) -> None:
    result = train(own(pictures, "--train.steps=30", "--train.eval_every=30"))
    assert result.evaluation.mean_iou > 0.8
    run = load_run(pictures / "run", "cpu")
    assert run.info.class_names == ("above", "below")
    assert run.info.channels == 3


def test_the_config_of_the_documentation_is_all_it_takes(pictures: Path, tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    assert len(block.splitlines()) <= 5
    block = block.replace("my_pictures", str(pictures)).replace("runs/mine", str(tmp_path / "run"))
    (tmp_path / "own.yaml").write_text(block)
    settings = load_config(
        tmp_path / "own.yaml",
        [
            # Labels have two classes of the three; the network is not what this is about.
            "model.name=tiny_base_oc",
            "model.norm=batchnorm",
            "data.augment.crop=[32,32]",
            "train.steps=2",
            "train.batch_size=2",
            "train.device=cpu",
        ],
    )
    assert train(settings).info.class_names == ("sky", "road", "car")


def test_relative_folders_start_at_the_data_root(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCNET_DATA_ROOT", str(pictures))
    result = train(own(pictures, "--data.root=."))
    assert int(result.evaluation.confusion.counts.sum()) == 48 * (40 + 45 + 50)


def test_wrong_labels_stop_the_run_before_anything_is_written(pictures: Path) -> None:
    path = pictures / "val" / "labels" / "2.png"
    Image.fromarray(np.full((50, 48), 9, dtype=np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"only the values 0, 1 and 255, got 9 .*2\.png"):
        train(own(pictures))
    assert not (pictures / "run").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--model.name=tiny_bas_oc",), "create: name must be one of"),
        (("--model.options.foo=1",), "create: foo must be left out for tiny_local, whose options"),
        (("--data.mosaics.size=8",), "LookupMosaics: size must be 32"),
        (("--eval.scales=[0]",), "InferenceOptions: scales must be one or more numbers above 0"),
        (("--eval.resize_short=5", "--eval.resize_long=6"), "resize_short must be None where"),
        (("--loss.class_weights=[1,2]",), "one weight for each of 5 classes, got 2"),
        (("--loss.ohem_threshold=2",), "ohem_threshold must be 0 to 1, got 2"),
    ],
)
def test_wrong_options_stop_the_run_before_anything_is_written(
    tmp_path: Path, options: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        train(config(tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


def test_weights_to_start_from_are_loaded(tmp_path: Path) -> None:
    first = train(config(tmp_path / "first"))
    path = tmp_path / "first" / "weights.safetensors"
    second = train(
        config(
            tmp_path / "second",
            f"--model.weights={path}",
            "--train.steps=1",
            "--optim.name=sgd",
            "--optim.lr=1e-30",
        )
    )
    for one, two in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(FileNotFoundError, match=r"got none\.safetensors \(docs/recipes\.md says"):
        train(config(tmp_path / "third", "--model.weights=none.safetensors"))


def test_weights_of_other_classes_are_taken_where_they_fit(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(config(tmp_path / "five", "--train.steps=1"))
    one = (
        f"--model.weights={tmp_path / 'five' / 'weights.safetensors'}",
        "--data.mean=[0.5]",
        "--data.std=[0.25]",
        "--train.steps=1",
        "--optim.name=sgd",
        "--optim.lr=1e-30",
    )
    with pytest.raises(ValueError, match=r"cls\.bias \(file 5, network 2\)"):
        train(own(pictures, *one))
    capsys.readouterr()
    second = train(own(pictures, *one, "--model.weights_strict=false"))
    assert "of another shape" in capsys.readouterr().out
    five, two = weights(first), weights(second)
    same = [name for name in two if five[name].shape == two[name].shape]
    assert {name.rpartition(".")[0] for name in two.keys() - same} == {"cls"}
    for name in same:
        # Statistics of norms move with the first step.
        if "running" not in name:
            assert (five[name] - two[name]).abs().max() < 1e-20, name


def test_runs_that_lack_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run folder of ocnet train, got .* config\.yaml"):
        load_run(tmp_path)


def test_devices_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.device must be in this machine, got cuda:63"):
        pick_device("cuda:63")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_on_a_gpu(tmp_path: Path, precision: str) -> None:
    more = ("--train.device=cuda", f"--train.precision={precision}", "--model.name=tiny_base_oc")
    settings = config(tmp_path / "run", *more)
    with pytest.raises(Stop):
        train(settings, on_step=stop_at(4))
    result = train(settings)
    assert next(result.model.parameters()).is_cuda
    assert [record["step"] for record in result.history] == [1, 2, 3, 4, 5, 6]
    assert int(result.evaluation.confusion.counts.sum()) == 2 * 32 * 32


@pytest.mark.parametrize("norm", ["inplace_abn", "inplace_abn_sync", "syncbn"])
def test_every_norm_trains_and_comes_back(tmp_path: Path, norm: str) -> None:
    result = train(config(tmp_path / "run", f"--model.norm={norm}"))
    losses = [record["loss"] for record in result.history if "loss" in record]
    assert all(np.isfinite(losses))
    layers = [m for m in result.model.modules() if isinstance(m, ABN)]
    assert {type(layer) for layer in layers} == {norm_layer(norm).func}
    assert all((layer.running_mean != 0).any() for layer in layers)
    again = load_run(tmp_path / "run", "cpu")
    assert_equal(dict(again.model.state_dict()), dict(result.model.state_dict()))


def test_norm_is_an_option_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.options must leave norm to model.norm"):
        config(tmp_path, "--model.options.norm=inplace_abn")
    with pytest.raises(ValueError, match=r"model\.norm must be batchnorm or inplace_abn"):
        config(tmp_path, "--model.norm=groupnorm")
