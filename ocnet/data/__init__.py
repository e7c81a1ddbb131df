# SPDX-License-Identifier: MIT
"""Data sets: pictures with one class number per pixel."""

from ocnet.data.augment import AffineCrops, Crops
from ocnet.data.base import (
    DatasetInfo,
    Sample,
    SegmentationDataset,
    check_labels,
    distinct_colours,
)
from ocnet.data.files import Augmentation, Entry, PictureFiles
from ocnet.data.inputs import INPUTS, Normalise, PictureTransform, Standardise
from ocnet.data.labels import IGNORE_INDEX, LabelMap
from ocnet.data.loader import Batch, Loader
from ocnet.data.mosaics import LookupMosaics, mosaics_info
from ocnet.data.photos import PHOTOS, load_photo
from ocnet.data.pictures import overlay, read_label, read_picture, write_class_map

__all__ = [
    "IGNORE_INDEX",
    "INPUTS",
    "PHOTOS",
    "AffineCrops",
    "Augmentation",
    "Batch",
    "Crops",
    "DatasetInfo",
    "Entry",
    "LabelMap",
    "Loader",
    "LookupMosaics",
    "Normalise",
    "PictureFiles",
    "PictureTransform",
    "Sample",
    "SegmentationDataset",
    "Standardise",
    "check_labels",
    "distinct_colours",
    "load_photo",
    "mosaics_info",
    "overlay",
    "read_label",
    "read_picture",
    "write_class_map",
]
