# SPDX-License-Identifier: MIT
"""From features to logits.

Every head is a module with ``forward(features: (N, C, h, w)) -> logits: (N, K, h, w)``, built as
``Head(in_channels, num_classes, ...)``. Logits stay at the resolution of the features.
"""

from ocnet.heads.auxiliary import AuxiliaryHead
from ocnet.heads.base_oc import BaseOCHead
from ocnet.heads.fcn import FCNHead
from ocnet.heads.local import LocalHead

__all__ = ["AuxiliaryHead", "BaseOCHead", "FCNHead", "LocalHead"]
