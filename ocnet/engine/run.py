# SPDX-License-Identifier: MIT
"""What a config stands for: data sets, a network, a device; and a finished run read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from ocnet import _env
from ocnet.data import (
    DatasetInfo,
    FolderPairs,
    LookupMosaics,
    Normalise,
    SegmentationDataset,
    distinct_colours,
    mosaics_info,
)
from ocnet.data.mosaics import Split
from ocnet.engine.config import DataConfig, ModelConfig, MosaicsConfig, RunConfig, load_config
from ocnet.models import Segmentor, create, load_checkpoint
from ocnet.models.weights import SCALE_KEY, save_weights, scale_kind

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
CLASSES_FILE = "per_class.csv"
CHECKPOINT_FILE = "last.pt"
WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True)
class Run:
    """A run folder, read back.

    Attributes:
        path: the folder.
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


def load_run(path: Path, device: str = "auto") -> Run:
    """Read a run folder; the data set itself is not touched.

    Args:
        path: folder that ``ocnet train`` wrote.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<number>``.

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
    config = load_config(path / CONFIG_FILE)
    info = dataset_info(config.data)
    place = pick_device(device)
    model = _create(config.model, info)
    load_checkpoint(model, path / WEIGHTS_FILE)
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


def dataset_info(config: DataConfig) -> DatasetInfo:
    """Return classes, colours and normalisation of a data set, without its files.

    Args:
        config: which data set.

    Returns:
        What the data sets of :func:`build_datasets` have as ``info``.
    """
    if config.name == "mosaics":
        return mosaics_info()
    names = tuple(config.folder.class_names)
    return DatasetInfo(names, _normalise(config), distinct_colours(len(names)))


def build_datasets(config: DataConfig) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Return the training and the validation split.

    Args:
        config: which data set.

    Returns:
        Training split, validation split.

    Raises:
        FileNotFoundError: files of the data set are missing.
        ValueError: an option is out of its range.
        RuntimeError: a package that the data set needs is missing.
    """
    if config.name == "mosaics":
        return (
            _mosaics(config.mosaics, "train", config.mosaics.train_length),
            _mosaics(config.mosaics, "val", config.mosaics.val_length),
        )
    folder = config.folder
    train_pairs, val_pairs = (
        FolderPairs(
            _rooted(root),
            folder.class_names,
            _normalise(config),
            crop=folder.crop,
            scale_range=(folder.scale_min, folder.scale_max),
            flip=folder.flip,
        )
        for root in (folder.train, folder.val)
    )
    return train_pairs, val_pairs


def build_model(config: ModelConfig, info: DatasetInfo) -> Segmentor:
    """Return the network, with the weights that the config starts from.

    Args:
        config: which network.
        info: how many classes and image channels it has.

    Returns:
        The network, on the CPU, in training mode.

    Raises:
        FileNotFoundError: the weights are missing.
        ValueError: name, an option or the weights do not fit.
    """
    model = _create(config, info)
    if config.weights is not None:
        load_checkpoint(model, config.weights)
    return model


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


def _mosaics(config: MosaicsConfig, split: Split, length: int) -> LookupMosaics:
    return LookupMosaics(split, config.size, length, config.seed, config.flat_fraction)


def _normalise(config: DataConfig) -> Normalise:
    return Normalise(tuple(config.folder.mean), tuple(config.folder.std))


def _rooted(path: str) -> Path:
    """Return a data path; a relative one starts at ``OCNET_DATA_ROOT`` where that is set."""
    root = _env.data_root()
    return Path(path) if root is None else Path(root) / path
