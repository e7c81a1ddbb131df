# SPDX-License-Identifier: MIT
"""The ops: functions on tensors, each with several back ends."""

from ocnet.ops._backends import Explanation, explain
from ocnet.ops.checkpointing import keep_outputs_policy
from ocnet.ops.oc_attention import (
    attention_entropy,
    attention_mass,
    attention_rows,
    oc_attention,
)
from ocnet.ops.spatial_gather import spatial_gather

__all__ = [
    "Explanation",
    "attention_entropy",
    "attention_mass",
    "attention_rows",
    "explain",
    "keep_outputs_policy",
    "oc_attention",
    "spatial_gather",
]
