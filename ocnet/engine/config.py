# SPDX-License-Identifier: MIT
"""What a training run is made of: typed sections, read from YAML with dotted overrides."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import jsonargparse
import yaml


@dataclass(frozen=True)
class MosaicsConfig:
    """Options of ``ocnet.data.LookupMosaics``.

    Attributes:
        size: side of the images, pixels.
        train_length: training samples.
        val_length: validation samples.
        flat_fraction: share of the free regions without texture, 0 to 1.
        seed: seed of both splits.
    """

    size: int = 96
    train_length: int = 4096
    val_length: int = 64
    flat_fraction: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class FolderConfig:
    """Options of ``ocnet.data.FolderPairs``.

    Attributes:
        train: folder with ``images`` and ``labels`` to train on; relative paths start at
            ``OCNET_DATA_ROOT``.
        val: the same, to validate on.
        class_names: one name per class, in the order of the class numbers.
        mean: mean of the normalisation, one value for grey pictures or three for colour.
        std: deviation of the normalisation, as many values.
        crop: side of the training crops, pixels.
        scale_min: smallest random scale.
        scale_max: largest random scale.
        flip: whether half of the crops are mirrored.
    """

    train: str = ""
    val: str = ""
    class_names: list[str] = field(default_factory=list)
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    crop: int = 512
    scale_min: float = 0.5
    scale_max: float = 2.0
    flip: bool = True


@dataclass(frozen=True)
class DataConfig:
    """Which data set, and how it is loaded.

    Attributes:
        name: ``mosaics`` (look-up mosaics) or ``folder`` (your own pictures).
        mosaics: options of the mosaics.
        folder: options of the folder.
        workers: processes that prepare batches; 0 prepares them in the training process.
        eval_batch_size: most pictures shown to the network at once in evaluation.
        check: samples of each split whose labels are checked before the first step. Every label is
            checked when it is read in any case.
    """

    name: Literal["mosaics", "folder"]
    mosaics: MosaicsConfig = field(default_factory=MosaicsConfig)
    folder: FolderConfig = field(default_factory=FolderConfig)
    workers: int = 0
    eval_batch_size: int = 1
    check: int = 64

    def __post_init__(self) -> None:
        if self.name == "folder":
            for key in ("train", "val", "class_names"):
                if not getattr(self.folder, key):
                    raise ValueError(
                        f"config: data.folder.{key} must be given when data.name is folder, "
                        f"got nothing"
                    )
        _at_least("data.workers", self.workers, 0)
        _at_least("data.eval_batch_size", self.eval_batch_size, 1)
        _at_least("data.check", self.check, 0)


@dataclass(frozen=True)
class ModelConfig:
    """Which network.

    Attributes:
        name: a name that ``ocnet.models.create`` knows.
        norm: batch norm of the network: ``batchnorm``, ``inplace_abn`` (keeps only its output for
            backward), ``inplace_abn_sync`` (the same over all processes) or ``syncbn`` (torch's, on GPUs);
            none: as published, mostly ``inplace_abn_sync``.
        options: further options of ``create``, by name.
        weights: file to start from, that ``ocnet.models.load_checkpoint`` reads: a whole network, or the
            backbone alone; none: fresh weights.
    """

    name: str
    norm: Literal["batchnorm", "inplace_abn", "inplace_abn_sync", "syncbn"] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None

    def __post_init__(self) -> None:
        if "norm" in self.options:
            raise ValueError(
                f"config: model.options must leave norm to model.norm, got {self.options['norm']}"
            )
        for taken in ("num_classes", "in_channels"):
            if taken in self.options:
                raise ValueError(
                    f"config: model.options must leave {taken} to the data set, "
                    f"got {self.options[taken]}"
                )


@dataclass(frozen=True)
class OptimConfig:
    """How weights are updated.

    Attributes:
        name: ``adamw`` or ``sgd``.
        lr: largest learning rate of the schedule.
        weight_decay: decoupled decay for ``adamw``, L2 penalty for ``sgd``.
        momentum: momentum of ``sgd``.
        schedule: ``one_cycle`` (up, then down to nearly 0) or ``poly``.
        power: exponent of ``poly``, ``lr * (1 - step / steps) ** power``.
        clip_norm: largest norm of all gradients together; none: no clipping.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 4e-3
    weight_decay: float = 1e-2
    momentum: float = 0.9
    schedule: Literal["one_cycle", "poly"] = "one_cycle"
    power: float = 0.9
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        _above("optim.lr", self.lr, 0)
        _at_least("optim.weight_decay", self.weight_decay, 0)
        if not 0 <= self.momentum < 1:
            raise ValueError(
                f"config: optim.momentum must be at least 0 and below 1, got {self.momentum}"
            )
        _at_least("optim.power", self.power, 0)
        if self.clip_norm is not None:
            _above("optim.clip_norm", self.clip_norm, 0)


@dataclass(frozen=True)
class TrainConfig:
    """The loop.

    Attributes:
        run_dir: folder that everything is written into.
        steps: updates of the weights.
        batch_size: pictures per step.
        seed: seed of the weights, of the order of samples, and of dropout.
        device: ``auto`` (CUDA if there is any), ``cpu``, ``cuda`` or ``cuda:<number>``.
        precision: ``auto`` (``bf16`` on a GPU that has it, else ``fp32``), ``fp32`` or ``bf16``.
        channels_last: whether images and weights are laid out with channels last.
        aux_weight: weight of the auxiliary loss.
        eval_every: steps between evaluations and checkpoints; both also come after the last step.
        log_every: steps between lines of the log; the loss is averaged over them.
        resume: ``auto`` continues the run in ``run_dir`` if there is one, ``never`` starts over.
    """

    run_dir: str
    steps: int = 500
    batch_size: int = 8
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool = False
    aux_weight: float = 0.4
    eval_every: int = 100
    log_every: int = 10
    resume: Literal["auto", "never"] = "auto"

    def __post_init__(self) -> None:
        if not self.run_dir:
            raise ValueError("config: train.run_dir must name a folder, got nothing")
        _at_least("train.steps", self.steps, 1)
        _at_least("train.batch_size", self.batch_size, 1)
        _at_least("train.seed", self.seed, 0)
        _at_least("train.aux_weight", self.aux_weight, 0)
        _at_least("train.eval_every", self.eval_every, 1)
        _at_least("train.log_every", self.log_every, 1)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(
                f"config: train.device must be auto, cpu, cuda or cuda:<number>, got {self.device}"
            )


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a training run does.

    Attributes:
        data: which data set.
        model: which network.
        optim: how weights are updated.
        train: the loop.
    """

    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    optim: OptimConfig = field(default_factory=OptimConfig)


def parse_config(args: Sequence[str], prog: str = "config") -> RunConfig:
    """Build a config from command-line arguments.

    Args:
        args: ``--config file.yaml`` and ``--<section>.<key>=<value>``; later ones win. ``--help``
            and ``--print_config`` print and exit.
        prog: name of the program in the help text.

    Returns:
        The config, all defaults filled in.

    Raises:
        FileNotFoundError: the config file does not exist.
        ValueError: a key is unknown or missing, or a value does not fit; one sentence.
    """
    _check_keys(args)
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        exit_on_error=False,
        description="Train a network. Options come from a YAML file and from the command line.",
    )
    parser.add_argument("--config", action="config", help="YAML file with the sections below")
    parser.add_class_arguments(RunConfig)
    try:
        values = parser.parse_args(list(args)).as_dict()
    except argparse.ArgumentError as error:
        raise ValueError(_in_one_sentence(str(error))) from error
    config: RunConfig = _build(RunConfig, values)
    return config


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config file.

    Args:
        path: YAML file.
        overrides: ``<section>.<key>=<value>``, without dashes.

    Returns:
        The config, all defaults filled in.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a key is unknown or missing, or a value does not fit; one sentence.
    """
    return parse_config(["--config", str(path), *(f"--{item}" for item in overrides)])


def save_config(config: RunConfig, path: Path) -> None:
    """Write a config, all defaults spelled out; ``load_config`` reads the same config back.

    Args:
        config: what to write.
        path: YAML file to write.
    """
    path.write_text(yaml.safe_dump(asdict(config), sort_keys=False), encoding="utf-8")


def differences(one: RunConfig, other: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return the keys in which two configs differ.

    Args:
        one: a config.
        other: another.

    Returns:
        Dotted key to the two values.
    """
    left, right = _flatten(asdict(one)), _flatten(asdict(other))
    return {
        key: (left.get(key), right.get(key))
        for key in left | right
        if left.get(key) != right.get(key)
    }


def _flatten(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _at_least(key: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"config: {key} must be at least {least}, got {value}")


def _above(key: str, value: float, bound: float) -> None:
    if not value > bound:
        raise ValueError(f"config: {key} must be greater than {bound}, got {value}")


def _check_keys(args: Sequence[str]) -> None:
    """Check the names of all keys, in the config file and on the command line.

    Values are left to the parser; but of an unknown key it says less, and of a section that is
    no section nothing.
    """
    words = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    words.add_argument("--config", action="append", default=[], type=Path)
    known, rest = words.parse_known_args(list(args))
    for path in known.config:
        if not path.is_file():
            raise FileNotFoundError(f"config: --config must name a file, got {path}")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(
                f"config: {path} must be YAML, got {' '.join(str(error).split())}"
            ) from error
        _check_section(content, RunConfig, "")
    for word in rest:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and name not in ("help", "print_config"):
            # One key of a file: nested mappings, the innermost value of no interest.
            nested: Any = _ANYTHING
            for part in reversed(name.split(".")):
                nested = {part: nested}
            _check_section(nested, RunConfig, "")


_ANYTHING = object()


def _check_section(content: Any, section: type, prefix: str) -> None:
    if content is _ANYTHING:
        return
    where = prefix.removesuffix(".") if prefix else "the file"
    if not isinstance(content, dict):
        raise ValueError(f"config: {where} must be a section with keys, got {content}")
    types = get_type_hints(section)
    for key, value in content.items():
        if key not in types:
            raise ValueError(
                f"config: {prefix}{key} must be a known key ({', '.join(types)}), got an unknown one"
            )
        if is_dataclass(types[key]):
            _check_section(value, types[key], f"{prefix}{key}.")


def _build(section: Any, values: Mapping[str, Any]) -> Any:
    """Make the frozen dataclasses of checked values."""
    types = get_type_hints(section)
    return section(
        **{
            key: _build(kind, values[key]) if is_dataclass(kind) else values[key]
            for key, kind in types.items()
        }
    )


def _in_one_sentence(message: str) -> str:
    """Turn what the parser says of a value into a sentence of this package."""
    missing = re.search(r"arguments are required: (.*)", message)
    if missing:
        return f"config: {missing[1]} must be given, got nothing"
    wrong = re.search(
        r'key "([\w.]+)".*Given value: (.*)|key "([\w.]+)".*Got value: (.*)', message, re.S
    )
    if wrong:
        key, value = (wrong[1], wrong[2]) if wrong[1] else (wrong[3], wrong[4])
        return f"config: {key} must be {_expected(key)}, got {value}"
    return f"config: {' '.join(message.split())}"


def _expected(key: str) -> str:
    """Return in words what type the value of a dotted key has."""
    kind: Any = RunConfig
    for part in key.split("."):
        kind = get_type_hints(kind)[part]
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return " or ".join(
        " or ".join(get_args(member))
        if get_origin(member) is Literal
        else _TYPE_NAMES.get(member, str(member))
        for member in members
    )


_TYPE_NAMES: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    dict[str, Any]: "a section of options",
    list[str]: "a list of texts",
    list[float]: "a list of numbers",
}
