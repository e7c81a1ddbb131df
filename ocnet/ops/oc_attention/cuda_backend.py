# SPDX-License-Identifier: MIT
"""The CUDA C++ back end: sm_80 and later, every dtype, any strides."""

from ocnet.ops._layout import aligned_rows
from ocnet.ops._native import NativeBackend
from ocnet.ops.oc_attention.problem import BackwardCall, ForwardCall, refuse_common

_BACKEND = NativeBackend("oc_attention", "cuda", refuse_common)

supports = _BACKEND.supports


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
