# SPDX-License-Identifier: MIT
"""Attention within the groups of a partition, and of all scales of a pyramid at once."""

from ocnet.ops._partition import Blocks, Grid, Partition, Strided
from ocnet.ops.partitioned_attention import flops
from ocnet.ops.partitioned_attention.functional import partitioned_attention, pyramid_attention

__all__ = [
    "Blocks",
    "Grid",
    "Partition",
    "Strided",
    "flops",
    "partitioned_attention",
    "pyramid_attention",
]
