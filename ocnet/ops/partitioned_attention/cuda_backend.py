# SPDX-License-Identifier: MIT
"""The CUDA C++ back end: the kernels of ``oc_attention``, one launch for all stages."""

from collections.abc import Sequence

from torch import Tensor

from ocnet.ops._layout import aligned_rows
from ocnet.ops._native import NativeBackend
from ocnet.ops.partitioned_attention.problem import (
    BackwardCall,
    ForwardCall,
    refuse_common,
)

_BACKEND = NativeBackend("partitioned_attention", "cuda", refuse_common)

supports = _BACKEND.supports


def forward(call: ForwardCall) -> None:
    """Write the outputs of the call."""
    _BACKEND.forward(
        call._replace(
            query=_aligned(call.query), key=_aligned(call.key), value=_aligned(call.value)
        )
    )


def backward(call: BackwardCall) -> None:
    """Write the gradients that are wanted."""
    _BACKEND.backward(
        call._replace(
            grad_out=_aligned(call.grad_out),
            query=_aligned(call.query),
            key=_aligned(call.key),
            value=_aligned(call.value),
        )
    )


def _aligned(stages: Sequence[Tensor]) -> list[Tensor]:
    return [aligned_rows(stage) for stage in stages]
