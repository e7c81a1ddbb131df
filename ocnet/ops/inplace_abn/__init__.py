# SPDX-License-Identifier: MIT
"""Batch norm with its activation, which saves only its output for backward."""

from ocnet.ops.inplace_abn.functional import inplace_abn

__all__ = ["inplace_abn"]
