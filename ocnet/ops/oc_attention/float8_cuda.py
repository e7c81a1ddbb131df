# SPDX-License-Identifier: MIT
"""The CUDA back end of attention in 8 bits: Hopper's own instructions, any strides."""

import functools

import torch

from ocnet.ops import _hopper
from ocnet.ops._backends import Support
from ocnet.ops._native import NativeBackend
from ocnet.ops.oc_attention.problem import Float8Call, Problem, refuse_common


def _refuse(problem: Problem, device_type: str) -> Support | None:
    refusal = refuse_common(problem, device_type)
    if refusal is not None:
        return refusal
    if problem.dtype not in _hopper.NARROW:
        return Support(False, f"it has no 8-bit products of {problem.dtype}")
    if problem.E > _hopper.MAX_CHANNELS or problem.Ev > _hopper.MAX_VALUES:
        return Support(
            False,
            f"in 8 bits it takes up to {_hopper.MAX_CHANNELS} channels of queries and "
            f"{_hopper.MAX_VALUES} of values, not E={problem.E}, Ev={problem.Ev}",
        )
    return None


_BACKEND = NativeBackend("oc_attention_fp8", "cuda", _refuse)


def supports(problem: Problem) -> Support:
    """Tell whether the library takes the call."""
    support = _BACKEND.supports(problem)
    if not support.ok:
        return support
    if not _is_built():
        return Support(False, "the library was built without code for sm_90a", missing_build=True)
    if torch.cuda.get_device_capability(problem.device) != _hopper.CAPABILITY:
        name = torch.cuda.get_device_name(problem.device)
        return Support(False, f"its 8-bit products are for compute capability 9.0, not for {name}")
    if not _hopper.CONFIRMED:
        return support._replace(reason="its 8-bit kernels are not yet confirmed on a device")
    return support


def forward(call: Float8Call) -> None:
    """Write the output of the call."""
    _BACKEND.forward(call)


@functools.cache
def _is_built() -> bool:
    return hasattr(torch.ops.ocnet_cuda, "oc_attention_fp8_fwd")
