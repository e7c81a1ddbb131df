# SPDX-License-Identifier: MIT
"""The ops: functions on tensors, each with several back ends."""

from ocnet.ops._backends import Explanation, explain
from ocnet.ops.oc_attention import attention_rows, oc_attention

__all__ = ["Explanation", "attention_rows", "explain", "oc_attention"]
