# SPDX-License-Identifier: MIT
"""Pixel-wise object-context attention."""

from ocnet.ops.oc_attention import flops, sharding
from ocnet.ops.oc_attention.diagnosis import attention_entropy, attention_mass
from ocnet.ops.oc_attention.functional import oc_attention
from ocnet.ops.oc_attention.rows import attention_rows

__all__ = [
    "attention_entropy",
    "attention_mass",
    "attention_rows",
    "flops",
    "oc_attention",
    "sharding",
]
