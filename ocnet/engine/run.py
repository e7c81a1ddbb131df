# SPDX-License-Identifier: MIT
"""The network and the device of a config, and a finished run read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ocnet.data import DatasetInfo
from ocnet.engine.config import ModelConfig, RunConfig
from ocnet.engine.config_files import load_config
from ocnet.engine.datasets import dataset_info
from ocnet.models import LoadReport, Segmentor, create, load_checkpoint
from ocnet.models.weights import SCALE_KEY, save_weights, scale_kind

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
METRICS_TABLE = "metrics.csv"
REPEAT_FILE = "run.json"
TENSORBOARD_FOLDER = "tensorboard"
CLASSES_FILE = "per_class.csv"
CHECKPOINT_FILE = "last.pt"
WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True)
class Run:
    """A network with its weights, and what they were trained for.

    Attributes:
        path: the run folder, or where there is none the file of the weights.
        config: what was trained.
        info: classes, colours and normalisation of its data set.
        device: where the network is.
        model: the network with its trained weights, in evaluation mode.
    """

    path: Path
    config: RunConfig
    info: DatasetInfo
    device: torch.device
    model: Segmentor


def load_run(path: Path, device: str = "auto", overrides: Sequence[str] = ()) -> Run:
    """Read a run folder; the data set itself is not touched.

    Args:
        path: folder that ``ocnet train`` wrote.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<number>``.
        overrides: ``<section>.<key>=<value>`` of the config that shall be different, such as ``eval.flip=true``.

    Returns:
        The run.

    Raises:
        FileNotFoundError: the folder lacks the config or the weights.
        ValueError: the weights do not fit the config, or the device is not there.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"load_run: path must be a run folder of ocnet train, got {path} without {name}"
            )
    config = load_config(path / CONFIG_FILE, overrides)
    return _opened(path, config, path / WEIGHTS_FILE, device)


def load_weights(
    config_path: Path, weights: Path, device: str = "auto", overrides: Sequence[str] = ()
) -> Run:
    """Read weights that were trained elsewhere; the data set itself is not touched.

    Args:
        config_path: config that names the network and its data set.
        weights: any file that ``ocnet.models.load_checkpoint`` reads.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<number>``.
        overrides: as for :func:`load_run`.

    Returns:
        The network, as if a run had ended with these weights.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the weights do not fit the config, or the device is not there.
    """
    return _opened(weights, load_config(config_path, overrides), weights, device)


def _opened(path: Path, config: RunConfig, weights: Path, device: str) -> Run:
    info = dataset_info(config.data)
    place = pick_device(device)
    model = _create(config.model, info)
    load_checkpoint(model, weights)
    return Run(path, config, info, place, model.to(place).eval())


def save_run_weights(path: Path, model: Segmentor, config: RunConfig, info: DatasetInfo) -> None:
    """Write the weights of a run, with what is needed to know what they are.

    Args:
        path: safetensors file to write.
        model: the network.
        config: its config.
        info: classes of its data set.
    """
    metadata = {
        "model": config.model.name,
        "norm": config.model.norm or "as published",
        SCALE_KEY: scale_kind(model),
        "options": json.dumps(config.model.options),
        "class_names": json.dumps(info.class_names),
    }
    save_weights(model, path, metadata)


def pick_device(name: str) -> torch.device:
    """Return the device of a config.

    Args:
        name: ``auto`` (CUDA if there is any), ``cpu``, ``cuda`` or ``cuda:<number>``.

    Returns:
        The device.

    Raises:
        ValueError: it is not in this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    number = 0 if device.index is None else device.index
    if device.type == "cuda" and number >= torch.cuda.device_count():
        raise ValueError(
            f"config: train.device must be in this machine, got {name} with "
            f"{torch.cuda.device_count()} CUDA devices"
        )
    return device


def build_model(config: ModelConfig, info: DatasetInfo) -> tuple[Segmentor, LoadReport | None]:
    """Return the network, with the weights that the config starts from.

    Args:
        config: which network.
        info: how many classes and image channels it has.

    Returns:
        The network, on the CPU, in training mode, and what became of the weights, if there are any.

    Raises:
        FileNotFoundError: the weights are missing.
        ValueError: name, an option or the weights do not fit.
    """
    model = _create(config, info)
    if config.weights is None:
        return model, None
    if not Path(config.weights).is_file():
        raise FileNotFoundError(
            f"config: model.weights must name a file, got {config.weights} (docs/recipes.md says where "
            "published ones are had; null starts from fresh weights)"
        )
    return model, load_checkpoint(model, config.weights, strict=config.weights_strict)


def _create(config: ModelConfig, info: DatasetInfo) -> Segmentor:
    model = create(
        config.name,
        num_classes=info.num_classes,
        in_channels=info.channels,
        norm=config.norm,
        **config.options,
    )
    # Nothing reads auxiliary logits in evaluation.
    model.aux_in_eval = False
    return model
