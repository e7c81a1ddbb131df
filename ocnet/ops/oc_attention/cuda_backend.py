# SPDX-License-Identifier: MIT
"""The CUDA C++ back end: sm_80 and later, every dtype, any strides."""

from ocnet.ops import _hopper
from ocnet.ops._backends import Support
from ocnet.ops._layout import aligned_rows
from ocnet.ops._native import NativeBackend
from ocnet.ops.oc_attention.problem import BackwardCall, ForwardCall, Problem, refuse_common

_BACKEND = NativeBackend("oc_attention", "cuda", refuse_common)
_HOPPER = _hopper.HopperKernels("oc_attention", _hopper.DTYPES)
_TF32 = BackwardCall._fields.index("tf32")  # which the Hopper kernels do without


def supports(problem: Problem) -> Support:
    """Tell whether the library takes the call, and which of its forward kernels."""
    support = _BACKEND.supports(problem)
    return support._replace(reason=_HOPPER.describe(problem, problem.S)) if support.ok else support


def is_first(problem: Problem, backward: bool) -> bool:
    """Tell whether a pass is best here, before the back ends that are asked first."""
    return _HOPPER.is_first(problem, problem.S, backward) and _BACKEND.supports(problem).ok


def forward(call: ForwardCall) -> None:
    """Write the outputs of the call."""
    problem = Problem.of_call(call)
    if _HOPPER.refuse(problem, problem.S) is None:
        query, key, value = _hopper.operands(call.query, call.key, call.value)
        _HOPPER.forward((query, key, value, call.scale, call.out, call.lse, call.residual))
        return
    key = None if call.key is None else aligned_rows(call.key)
    _BACKEND.forward(
        call._replace(query=aligned_rows(call.query), key=key, value=aligned_rows(call.value))
    )


def backward(call: BackwardCall) -> None:
    """Write the gradients that are not ``None``."""
    key = None if call.key is None else aligned_rows(call.key)
    aligned = call._replace(
        grad_out=aligned_rows(call.grad_out),
        query=aligned_rows(call.query),
        key=key,
        value=aligned_rows(call.value),
    )
    problem = Problem.of_call(call)
    if _HOPPER.refuse(problem, problem.S, backward=True) is None:
        _HOPPER.backward((*aligned[:_TF32], *aligned[_TF32 + 1 :]))
    else:
        _BACKEND.backward(aligned)
