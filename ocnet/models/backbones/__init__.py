# SPDX-License-Identifier: MIT
"""Backbones: images to features.

Every backbone is a module with ``forward(images) -> Features`` and the attributes ``in_channels``,
``aux_channels`` and ``out_channels``.
"""

from ocnet.models.backbones.features import Features
from ocnet.models.backbones.resnet import ResNet, resnet18, resnet50, resnet101
from ocnet.models.backbones.tiny import TinyEncoder

__all__ = ["Features", "ResNet", "TinyEncoder", "resnet18", "resnet50", "resnet101"]
