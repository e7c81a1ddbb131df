# SPDX-License-Identifier: MIT
"""The CUDA C++ back end: sm_80 and later, every dtype, any strides."""

import torch

from ocnet.ops._backends import Support
from ocnet.ops._layout import aligned_rows
from ocnet.ops._native import NativeBackend
from ocnet.ops.oc_attention.problem import BackwardCall, ForwardCall, Problem, refuse_common

_BACKEND = NativeBackend("oc_attention", "cuda", refuse_common)
_OLDEST = (8, 0)


def supports(problem: Problem) -> Support:
    """Tell whether the CUDA library takes the call on this device."""
    support = _BACKEND.supports(problem)
    return refuse_old(problem.device) or support if support.ok else support


def refuse_old(device: torch.device) -> Support | None:
    """Return the refusal of a device that is older than the kernels, or ``None``."""
    if torch.cuda.get_device_capability(device) >= _OLDEST:
        return None
    name = torch.cuda.get_device_name(device)
    return Support(False, f"it needs compute capability 8.0 or later, and {name} is older")


def forward(call: ForwardCall) -> None:
    """Write the outputs of the call."""
    key = None if call.key is None else aligned_rows(call.key)
    _BACKEND.forward(
        call._replace(query=aligned_rows(call.query), key=key, value=aligned_rows(call.value))
    )


def backward(call: BackwardCall) -> None:
    """Write the gradients that are not ``None``."""
    key = None if call.key is None else aligned_rows(call.key)
    _BACKEND.backward(
        call._replace(
            grad_out=aligned_rows(call.grad_out),
            query=aligned_rows(call.query),
            key=key,
            value=aligned_rows(call.value),
        )
    )
