# SPDX-License-Identifier: MIT
"""The C++ CPU back end: the kernels of ``oc_attention``, whose tokens are looked up group by group."""

from ocnet.ops._native import NativeBackend
from ocnet.ops.partitioned_attention.problem import refuse_common

_BACKEND = NativeBackend("partitioned_attention", "cpu", refuse_common)
supports, forward, backward = _BACKEND.supports, _BACKEND.forward, _BACKEND.backward
