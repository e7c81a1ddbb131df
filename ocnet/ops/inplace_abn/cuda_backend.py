# SPDX-License-Identifier: MIT
"""The CUDA C++ back end: sm_80 and later, every dtype; channels that fit stay on chip."""

from functools import partial

from ocnet.ops._native import NativeBackend
from ocnet.ops.inplace_abn.problem import refuse_common

_BACKEND = NativeBackend("inplace_abn", "cuda", refuse_common)
supports, forward, backward = _BACKEND.supports, _BACKEND.forward, _BACKEND.backward
stats = partial(_BACKEND.run, "stats")
reduce = partial(_BACKEND.run, "bwd_reduce")
apply = partial(_BACKEND.run, "bwd_apply")
