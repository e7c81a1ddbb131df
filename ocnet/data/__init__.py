# SPDX-License-Identifier: MIT
"""Data sets: pictures with one class number per pixel."""

from ocnet.data.base import (
    IGNORE_INDEX,
    DatasetInfo,
    Sample,
    SegmentationDataset,
    check_labels,
    distinct_colours,
)
from ocnet.data.folder import FolderPairs
from ocnet.data.loader import Batch, Loader
from ocnet.data.mosaics import LookupMosaics, mosaics_info
from ocnet.data.photos import PHOTOS, load_photo
from ocnet.data.pictures import overlay, read_picture, write_class_map
from ocnet.data.transforms import Augment, Normalise, PictureTransform, Standardise

__all__ = [
    "IGNORE_INDEX",
    "PHOTOS",
    "Augment",
    "Batch",
    "DatasetInfo",
    "FolderPairs",
    "Loader",
    "LookupMosaics",
    "Normalise",
    "PictureTransform",
    "Sample",
    "SegmentationDataset",
    "Standardise",
    "check_labels",
    "distinct_colours",
    "load_photo",
    "mosaics_info",
    "overlay",
    "read_picture",
    "write_class_map",
]
