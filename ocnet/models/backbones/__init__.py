# SPDX-License-Identifier: MIT
"""Backbones: images to features. See ``Body`` for what one is."""

from ocnet.models.backbones.body import Backbone, Body
from ocnet.models.backbones.hrnet import HRNetBody
from ocnet.models.backbones.resnet import (
    STRIDE_8,
    STRIDE_8_AFTERWARDS,
    STRIDE_16,
    Dilation,
    ResNetBody,
)
from ocnet.models.backbones.tiny import TinyBody

__all__ = [
    "STRIDE_8",
    "STRIDE_8_AFTERWARDS",
    "STRIDE_16",
    "Backbone",
    "Body",
    "Dilation",
    "HRNetBody",
    "ResNetBody",
    "TinyBody",
]
