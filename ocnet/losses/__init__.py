# SPDX-License-Identifier: MIT
"""Losses on logits at feature resolution."""

from ocnet.losses.cross_entropy import cross_entropy
from ocnet.losses.edge import edge_labels, edge_loss
from ocnet.losses.ohem import OhemKind, ohem_cross_entropy
from ocnet.losses.segmentation import CITYSCAPES_WEIGHTS, Mining, SegmentationLoss

__all__ = [
    "CITYSCAPES_WEIGHTS",
    "Mining",
    "OhemKind",
    "SegmentationLoss",
    "cross_entropy",
    "edge_labels",
    "edge_loss",
    "ohem_cross_entropy",
]
