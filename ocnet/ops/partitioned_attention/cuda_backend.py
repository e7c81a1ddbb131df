# SPDX-License-Identifier: MIT
"""The CUDA C++ back end: the kernels of ``oc_attention``, one launch for all stages."""

from collections.abc import Sequence

from torch import Tensor

from ocnet.ops._backends import Support
from ocnet.ops._hopper import NARROW, HopperKernels
from ocnet.ops._layout import aligned_rows
from ocnet.ops._native import NativeBackend
from ocnet.ops.partitioned_attention.problem import (
    BackwardCall,
    ForwardCall,
    Problem,
    refuse_common,
)

_BACKEND = NativeBackend("partitioned_attention", "cuda", refuse_common)
_HOPPER = HopperKernels("partitioned_attention", NARROW)
_TF32 = BackwardCall._fields.index("tf32")  # which the Hopper kernels do without


def supports(problem: Problem) -> Support:
    """Tell whether the library takes the call, and which of its forward kernels."""
    support = _BACKEND.supports(problem)
    if not support.ok:
        return support
    return support._replace(reason=_HOPPER.describe(problem, problem.largest_group))


def is_first(problem: Problem, backward: bool) -> bool:
    """Tell whether a pass is best here, before the back ends that are asked first."""
    first = _HOPPER.is_first(problem, problem.largest_group, backward)
    return first and _BACKEND.supports(problem).ok


def forward(call: ForwardCall) -> None:
    """Write the outputs of the call."""
    aligned = call._replace(
        query=_aligned(call.query), key=_aligned(call.key), value=_aligned(call.value)
    )
    problem = Problem.of_call(call)
    if _HOPPER.refuse(problem, problem.largest_group) is None:
        reads = (aligned.query, aligned.key, aligned.value, call.partition, call.scale)
        _HOPPER.forward((*reads, call.out, call.lse, call.residual))
    else:
        _BACKEND.forward(aligned)


def backward(call: BackwardCall) -> None:
    """Write the gradients that are wanted."""
    aligned = call._replace(
        grad_out=_aligned(call.grad_out),
        query=_aligned(call.query),
        key=_aligned(call.key),
        value=_aligned(call.value),
    )
    problem = Problem.of_call(call)
    if _HOPPER.refuse(problem, problem.largest_group, backward=True) is None:
        _HOPPER.backward((*aligned[:_TF32], *aligned[_TF32 + 1 :]))
    else:
        _BACKEND.backward(aligned)


def _aligned(stages: Sequence[Tensor]) -> list[Tensor]:
    return [aligned_rows(stage) for stage in stages]
