# SPDX-License-Identifier: MIT
"""The data sets that a config stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ocnet import _env
from ocnet.data import (
    IGNORE_INDEX,
    INPUTS,
    AffineCrops,
    Augmentation,
    Crops,
    DatasetInfo,
    Entry,
    LabelMap,
    LookupMosaics,
    Normalise,
    PictureFiles,
    PictureTransform,
    SegmentationDataset,
    distinct_colours,
    mosaics_info,
)
from ocnet.data.sets import SOURCES, folder_entries
from ocnet.engine.config import DataConfig

Split = Literal["train", "val", "test"]


def dataset_info(config: DataConfig) -> DatasetInfo:
    """Return classes, colours and normalisation of a data set, without its files.

    Args:
        config: which data set.

    Returns:
        What the data sets of :func:`build_datasets` have as ``info``, but for values of label files that
        only the files tell.

    Raises:
        ValueError: an option is out of its range.
    """
    if config.name == "mosaics":
        return mosaics_info()
    if config.name != "folder":
        return SOURCES[config.name].info(INPUTS[config.input])
    names = tuple(config.class_names)
    label_map = LabelMap(config.label_map) if config.label_map else LabelMap.identity(len(names))
    outside = sorted(set(label_map.classes.values()) - {*range(len(names)), IGNORE_INDEX})
    if outside:
        raise ValueError(
            f"config: data.label_map must lead to classes 0 to {len(names) - 1} or {IGNORE_INDEX}, "
            f"got {outside[0]}"
        )
    return DatasetInfo(names, _own_input(config), distinct_colours(len(names)), label_map)


def build_datasets(config: DataConfig) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Return the training and the validation split.

    Args:
        config: which data set.

    Returns:
        Training split, validation split.

    Raises:
        FileNotFoundError: files of the data set are missing.
        ValueError: an option is out of its range, or a split has no labels.
        RuntimeError: a package that the data set needs is missing.
    """
    splits = (build_split(config, "train", augmented=True), build_split(config, "val"))
    for name, split in zip(("train", "val"), splits, strict=True):
        if not split.labelled:
            raise ValueError(
                f"config: data.{name} must be a split with labels, got {getattr(config, name)}"
            )
    return splits


def build_split(
    config: DataConfig, split: Split, *, augmented: bool = False
) -> SegmentationDataset:
    """Return one split.

    Args:
        config: which data set.
        split: which of those that the config names.
        augmented: whether ``draw`` augments.

    Returns:
        The split; that of ``test`` may be without labels.

    Raises:
        FileNotFoundError: files of the data set are missing.
        ValueError: an option is out of its range, there is no such split, or it is empty.
        RuntimeError: a package that the data set needs is missing.
    """
    if config.name == "mosaics":
        return _mosaics(config, split)
    info = dataset_info(config)
    augmentation = _augmentation(config, info) if augmented else None
    try:
        entries, info = _files(config, getattr(config, split), info)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; data.root says where the data is") from error
    return PictureFiles(entries, info, augmentation)


def _files(config: DataConfig, split: str, info: DatasetInfo) -> tuple[list[Entry], DatasetInfo]:
    """Return the pictures of a split, and what is known of them now that their files are there."""
    root = _rooted(config.root)
    if config.name == "folder":
        return [entry for part in split.split("+") for entry in folder_entries(root / part)], info
    source = SOURCES[config.name]
    return source.entries(root, split), source.info(info.picture_transform, root)


def _mosaics(config: DataConfig, split: Split) -> LookupMosaics:
    if split == "test":
        raise ValueError("config: data.name must be a data set with a test split, got mosaics")
    mosaics = config.mosaics
    length = mosaics.train_length if split == "train" else mosaics.val_length
    return LookupMosaics(split, mosaics.size, length, mosaics.seed, mosaics.flat_fraction)


def _own_input(config: DataConfig) -> PictureTransform:
    if config.mean is None or config.std is None:
        return INPUTS[config.input]
    return Normalise(tuple(config.mean), tuple(config.std))


def _augmentation(config: DataConfig, info: DatasetInfo) -> Augmentation:
    options = config.augment
    rows, columns = options.crop
    if options.kind == "affine":
        return AffineCrops(
            info.picture_transform,
            crop=(rows, columns),
            scale=options.affine_scale,
            rotation=options.rotation,
            flip=options.flip != "none",
            mirror_pairs=info.mirror_pairs,
        )
    resize_to = None if options.resize_to is None else (options.resize_to[0], options.resize_to[1])
    return Crops(
        info.picture_transform,
        crop=(rows, columns),
        resize_short=options.resize_short,
        resize_to=resize_to,
        resize_long=options.resize_long,
        scale_min=options.scale_min,
        scale_max=options.scale_max,
        scale_step=options.scale_step,
        aspect_min=options.aspect_min,
        aspect_max=options.aspect_max,
        interpolation=options.interpolation,
        flip=options.flip,
        brightness=options.brightness,
        rounding=options.rounding,
        pad=options.pad,
        pad_at=options.pad_at,
        mirror_pairs=info.mirror_pairs,
    )


def _rooted(path: str) -> Path:
    """Return a data path; a relative one starts at ``OCNET_DATA_ROOT`` where that is set."""
    root = _env.data_root()
    return Path(path) if root is None else Path(root) / path
