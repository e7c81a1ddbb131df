# SPDX-License-Identifier: MIT
"""The CUDA C++ back end: sm_80 and later, every dtype, any strides."""

import torch

from ocnet.ops._backends import Support
from ocnet.ops.oc_attention.native import NativeBackend
from ocnet.ops.oc_attention.problem import Problem

_BACKEND = NativeBackend("cuda")
_OLDEST = (8, 0)
forward, backward = _BACKEND.forward, _BACKEND.backward


def supports(problem: Problem) -> Support:
    """Tell whether the CUDA library takes the call on this device."""
    support = _BACKEND.supports(problem)
    if support.ok and torch.cuda.get_device_capability(problem.device) < _OLDEST:
        name = torch.cuda.get_device_name(problem.device)
        return Support(False, f"it needs compute capability 8.0 or later, and {name} is older")
    return support
