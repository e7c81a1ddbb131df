# SPDX-License-Identifier: MIT
"""Networks by name, what they return, and weights in files."""

from ocnet.models.attention import AttentionView, attends, attention_views
from ocnet.models.builder import create, names
from ocnet.models.checkpoints import LoadReport, load_checkpoint
from ocnet.models.segmentor import Logits, Segmentor

__all__ = [
    "AttentionView",
    "LoadReport",
    "Logits",
    "Segmentor",
    "attends",
    "attention_views",
    "create",
    "load_checkpoint",
    "names",
]
