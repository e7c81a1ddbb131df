# SPDX-License-Identifier: MIT
"""The C++ CPU back end: fixed-size tiles, threads, extra memory linear in the tokens."""

from ocnet.ops._native import NativeBackend
from ocnet.ops.oc_attention.problem import refuse_common

_BACKEND = NativeBackend("oc_attention", "cpu", refuse_common)
supports, forward, backward = _BACKEND.supports, _BACKEND.forward, _BACKEND.backward
