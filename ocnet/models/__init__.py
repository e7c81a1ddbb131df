# SPDX-License-Identifier: MIT
"""Networks: backbones, the segmentor that joins them to heads, and networks by name."""

from ocnet.models.builder import available, create
from ocnet.models.segmentor import Segmentor

__all__ = ["Segmentor", "available", "create"]
