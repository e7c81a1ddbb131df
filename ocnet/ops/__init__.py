# SPDX-License-Identifier: MIT
"""The ops: functions on tensors, each with several back ends."""

from ocnet.ops._backends import Explanation, explain
from ocnet.ops.checkpointing import keep_outputs_policy
from ocnet.ops.inplace_abn import inplace_abn
from ocnet.ops.oc_attention import (
    attention_entropy,
    attention_mass,
    attention_rows,
    oc_attention,
)
from ocnet.ops.partitioned_attention import (
    Blocks,
    Grid,
    Partition,
    Strided,
    partitioned_attention,
    pyramid_attention,
)
from ocnet.ops.spatial_gather import spatial_gather

__all__ = [
    "Blocks",
    "Explanation",
    "Grid",
    "Partition",
    "Strided",
    "attention_entropy",
    "attention_mass",
    "attention_rows",
    "explain",
    "inplace_abn",
    "keep_outputs_policy",
    "oc_attention",
    "partitioned_attention",
    "pyramid_attention",
    "spatial_gather",
]
