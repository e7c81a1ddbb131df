# SPDX-License-Identifier: MIT
"""The CUDA C++ back end: sm_80 and later, every dtype, any strides."""

from torch import Tensor

from ocnet.ops._layout import aligned_rows
from ocnet.ops._native import NativeBackend
from ocnet.ops.spatial_gather.problem import BackwardCall, ForwardCall, refuse_common

_BACKEND = NativeBackend("spatial_gather", "cuda", refuse_common)

supports = _BACKEND.supports


def forward(call: ForwardCall) -> None:
    """Write the outputs of the call."""
    _BACKEND.forward(call._replace(features=_readable(call.features, call.tf32)))


def backward(call: BackwardCall) -> None:
    """Write the gradients that are not ``None``."""
    _BACKEND.backward(
        call._replace(
            grad_out=_readable(call.grad_out, call.tf32),
            features=_readable(call.features, call.tf32),
        )
    )


def _readable(matrix: Tensor, tf32: bool) -> Tensor:
    """Return rows that the tensor-core kernels can copy; the others take any strides."""
    on_tensor_cores = tf32 or matrix.element_size() == 2
    return aligned_rows(matrix) if on_tensor_cores else matrix
