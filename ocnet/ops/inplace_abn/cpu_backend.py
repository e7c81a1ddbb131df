# SPDX-License-Identifier: MIT
"""The C++ CPU back end: vector code, threads, sums of fixed parts in a fixed order."""

from functools import partial

from ocnet.ops._native import NativeBackend
from ocnet.ops.inplace_abn.problem import refuse_common

_BACKEND = NativeBackend("inplace_abn", "cpu", refuse_common)
supports, forward, backward = _BACKEND.supports, _BACKEND.forward, _BACKEND.backward
stats = partial(_BACKEND.run, "stats")
reduce = partial(_BACKEND.run, "bwd_reduce")
apply = partial(_BACKEND.run, "bwd_apply")
