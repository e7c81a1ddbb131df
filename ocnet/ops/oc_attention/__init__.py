# SPDX-License-Identifier: MIT
"""Pixel-wise object-context attention."""

from ocnet.ops.oc_attention.functional import oc_attention
from ocnet.ops.oc_attention.rows import attention_rows

__all__ = ["attention_rows", "oc_attention"]
