# SPDX-License-Identifier: MIT
"""Configs: read, overridden, refused in one sentence, written and read back."""

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from ocnet.data import INPUTS, Crops
from ocnet.data.sets import SOURCES
from ocnet.engine.config import AugmentConfig, DataConfig, EvalConfig, LossConfig, RunConfig
from ocnet.engine.config_files import differences, load_config, parse_config, save_config
from ocnet.engine.inference import inference_options
from ocnet.evaluation import InferenceOptions
from ocnet.evaluation.options import Blend, Border, Merge, Mode
from ocnet.losses import Mining, OhemKind
from ocnet.models import names

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SHIPPED = sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "bases")
BASE: dict[str, Any] = {
    "data": {"name": "mosaics", "mosaics": {"size": 64}},
    "model": {"name": "tiny_local"},
    "train": {"run_dir": "runs/x", "steps": 7},
}


def write(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def changed(section: str, key: str, value: Any) -> dict[str, Any]:
    return {**BASE, section: {**BASE.get(section, {}), key: value}}


def test_values_of_the_file_and_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, BASE))
    assert config.data.mosaics.size == 64
    assert config.data.mosaics.train_length == 4096
    assert config.train.steps == 7
    assert config.optim.name == "adamw"


def test_overrides_win(tmp_path: Path) -> None:
    path = write(tmp_path, BASE)
    config = load_config(
        path,
        [
            "train.steps=9",
            "optim.lr=4e-3",
            "optim.clip_norm=1",
            "model.options.dropout=0.5",
            "data.mosaics.size=96",
        ],
    )
    assert config.train.steps == 9
    assert config.optim.lr == 0.004
    assert config.optim.clip_norm == 1.0
    assert config.model.options == {"dropout": 0.5}
    assert config.data.mosaics.size == 96
    assert config.train.run_dir == "runs/x"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_configs_are_read_and_have_a_run_folder_of_their_own(path: Path) -> None:
    config = load_config(path)
    assert Path(config.train.run_dir) == Path("runs", path.parent.name, path.stem)
    assert config.model.name in names()
    if path.parent.name == "mosaics":
        assert config.model.name == path.stem


def test_a_config_and_its_control_differ_in_the_network_only() -> None:
    by_name = {path.stem: load_config(path) for path in (CONFIGS / "mosaics").glob("*.yaml")}
    for size in ("tiny", "resnet18"):
        keys = differences(by_name[f"{size}_base_oc"], by_name[f"{size}_local"])
        assert set(keys) == {"model.name", "train.run_dir"}


def write_with_base(tmp_path: Path, base: Any, content: Any) -> Path:
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "shared.yaml").write_text(yaml.safe_dump(base))
    return write(tmp_path, {"base": "bases/shared.yaml", **content})


def test_a_config_lies_over_its_base_key_by_key(tmp_path: Path) -> None:
    base = {**BASE, "model": {"name": "tiny_local", "options": {"dropout": 0.5, "aux": True}}}
    content = {
        "data": {"mosaics": {"train_length": 8}},
        "model": {"name": "tiny_base_oc", "options": {"aux": False}},
        "eval": {"scales": [2.0]},
    }
    path = write_with_base(tmp_path, {**base, "eval": {"scales": [0.5, 1.0]}}, content)
    config = load_config(path, ["train.steps=9"])
    assert (config.data.mosaics.size, config.data.mosaics.train_length) == (64, 8)
    assert config.model.name == "tiny_base_oc"
    assert config.model.options == {"dropout": 0.5, "aux": False}
    # Lists are values: they take the place of others.
    assert config.eval.scales == [2.0]
    assert (config.train.run_dir, config.train.steps) == ("runs/x", 9)


def test_a_base_may_lack_what_the_config_has_and_need_not_be_complete(tmp_path: Path) -> None:
    base = {"optim": {"lr": 0.02}}
    assert load_config(write_with_base(tmp_path, base, BASE)).optim.lr == 0.02


def test_the_resolved_config_needs_no_base(tmp_path: Path) -> None:
    config = load_config(write_with_base(tmp_path, {"optim": {"lr": 0.02}}, BASE))
    save_config(config, tmp_path / "resolved.yaml")
    (tmp_path / "bases" / "shared.yaml").unlink()
    assert load_config(tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize(
    ("base", "complaint"),
    [
        ({**BASE, "base": "other.yaml"}, r"base of .*config\.yaml must have no base itself, got"),
        ({"foo": 1}, r"foo must be a known key"),
        ({"optim": 3}, r"optim must be a section with keys, got 3"),
    ],
)
def test_wrong_bases_are_refused_in_one_sentence(tmp_path: Path, base: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"^config: .*{complaint}"):
        load_config(write_with_base(tmp_path, base, BASE))


def test_a_base_is_the_path_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"base of .* must be the path of a config, got 3"):
        load_config(write(tmp_path, {**BASE, "base": 3}))
    with pytest.raises(FileNotFoundError, match=r"must name a file, got .*none\.yaml"):
        load_config(write(tmp_path, {**BASE, "base": "none.yaml"}))


def test_written_configs_are_read_back(tmp_path: Path) -> None:
    content = {
        **BASE,
        "data": {"name": "folder", "root": "a", "class_names": ["x", "y"], "mean": [0.5],
                 "std": [0.25], "label_map": {7: 0, 128: 1, 0: 255}},
        "model": {"name": "tiny_local", "options": {"sizes": [1, 2], "aux": True, "dropout": 1e-5}},
        "optim": {"lr": 4e-5, "clip_norm": 0.5},
    }  # fmt: skip
    config = load_config(write(tmp_path, content))
    save_config(config, tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml") == config


def choices(section: type, key: str) -> set[str]:
    """Return what a key of a section may be."""
    kind = get_type_hints(section)[key]
    return set(get_args(kind))


def test_choices_are_those_of_what_the_config_stands_for() -> None:
    # The config is read without torch, so it cannot ask.
    assert choices(DataConfig, "name") == {"mosaics", "folder", *SOURCES}
    assert choices(DataConfig, "input") == set(INPUTS)
    assert choices(LossConfig, "ohem") == set(get_args(Mining))
    assert choices(LossConfig, "ohem_kind") == set(get_args(OhemKind))
    for key, allowed in (("mode", Mode), ("border", Border), ("blend", Blend), ("merge", Merge)):
        assert choices(EvalConfig, key) == set(get_args(allowed))


def test_defaults_of_scoring_are_those_of_scoring() -> None:
    assert inference_options(EvalConfig()) == InferenceOptions()
    names = {field.name for field in dataclasses.fields(InferenceOptions)}
    assert {field.name for field in dataclasses.fields(EvalConfig)} == names | {"batch_size"}


def test_every_option_of_random_crops_is_a_key() -> None:
    options = {field.name for field in dataclasses.fields(Crops)}
    keys = {field.name for field in dataclasses.fields(AugmentConfig)}
    # What the data set says, not the config.
    assert options - keys == {"transform", "mirror_pairs", "ignore_index"}
    assert keys - options == {"kind", "rotation", "affine_scale"}


def test_differences_are_named(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, BASE))
    other = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, steps=9),
        model=dataclasses.replace(config.model, options={"aux": True}),
    )
    assert differences(config, config) == {}
    found = differences(config, other)
    assert found["train.steps"] == (7, 9)
    assert found["model.options.aux"] == (None, True)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({**BASE, "foo": 1}, r"foo must be a known key \(data, model, train, loss, optim, eval\)"),
        (changed("data", "foo", 1), r"data\.foo must be a known key \(name, root"),
        (changed("data", "mosaics", {"foo": 1}), r"data\.mosaics\.foo must be a known key"),
        (changed("data", "mosaics", 3), r"data\.mosaics must be a section with keys, got 3"),
        ({**BASE, "optim": None}, "optim must be a section with keys, got None"),
        ({**BASE, "model": "tiny_local"}, "model must be a section with keys, got tiny_local"),
        ({**BASE, "model": {}}, r"model\.name must be given, got nothing"),
        ({"data": BASE["data"], "model": BASE["model"]}, r"train\.run_dir must be given"),
        (changed("train", "steps", "many"), r"train\.steps must be a whole number, got many"),
        (changed("train", "steps", 1.5), r"train\.steps must be a whole number, got 1\.5"),
        (changed("train", "steps", 0), r"train\.steps must be at least 1, got 0"),
        (changed("train", "run_dir", ""), r"train\.run_dir must name a folder"),
        (changed("train", "device", "tpu"), r"train\.device must be auto, cpu, .* got tpu"),
        (changed("train", "precision", "fp8"), "auto or fp32 or bf16, got fp8"),
        (changed("optim", "clip_norm", "x"), r"optim\.clip_norm must be a number or null, got x"),
        (changed("optim", "clip_norm", 0), r"optim\.clip_norm must be greater than 0, got 0"),
        (changed("optim", "lr", 0), r"optim\.lr must be greater than 0, got 0"),
        (changed("optim", "lr", float("nan")), r"optim\.lr must be greater than 0, got nan"),
        (changed("optim", "momentum", 1), r"optim\.momentum must be at least 0 and below 1"),
        (changed("model", "options", 3), r"model\.options must be a section of options, got 3"),
        (changed("model", "options", {"num_classes": 3}), "leave num_classes to the data set"),
        (
            changed("data", "name", "city"),
            r"data\.name must be mosaics or folder or cityscapes or .*, got city",
        ),
        (changed("data", "name", "folder"), r"data\.root must be given when data\.name is folder"),
        (changed("data", "name", "lip"), r"data\.root must be given when data\.name is lip"),
        (
            changed("data", "class_names", ["a"]),
            r"data\.class_names must be left out when data\.name is mosaics",
        ),
        (changed("data", "std", [1.0]), "std must be left out when data"),
        (changed("data", "augment", {"crop": [5]}), r"augment\.crop must be rows and columns"),
        (changed("data", "label_map", {"x": 1}), r"data\.label_map"),
        (changed("eval", "tile", [0, 5]), r"eval\.tile must be rows and columns, at least 1"),
        (changed("eval", "merge", "best"), "mean_logits or sum_logits .* got best"),
        (changed("loss", "ohem", "all"), "none or single or both, got all"),
        (changed("loss", "ohem_keep", -1), r"loss\.ohem_keep must be at least 0, got -1"),
        (changed("optim", "warmup_steps", 5), r"warmup_steps must be 0 with one_cycle"),
        (changed("optim", "head_lr", 0), r"optim\.head_lr must be greater than 0, got 0"),
        ("just text", "the file must be a section with keys, got just text"),
    ],
)
def test_wrong_configs_are_refused_in_one_sentence(
    tmp_path: Path, content: Any, complaint: str
) -> None:
    with pytest.raises(ValueError, match=rf"^config: .*{complaint}") as caught:
        load_config(write(tmp_path, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("--train.stepz=3", r"train\.stepz must be a known key"),
        ("--steps=3", r"steps must be a known key"),
        ("--train.steps=x", r"train\.steps must be a whole number, got x"),
        ("--train.steps", r"train\.steps.* expected one argument"),
        ("extra", "unrecognized arguments: extra"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(
    tmp_path: Path, argument: str, complaint: str
) -> None:
    with pytest.raises(ValueError, match=rf"^config: .*{complaint}"):
        parse_config(["--config", str(write(tmp_path, BASE)), argument])


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config must name a file, got .*none\.yaml"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1,")
    with pytest.raises(ValueError, match=r"broken\.yaml must be YAML"):
        load_config(tmp_path / "broken.yaml")


def test_configs_cannot_be_changed(tmp_path: Path) -> None:
    config: RunConfig = load_config(write(tmp_path, BASE))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.steps = 3  # type: ignore[misc]
