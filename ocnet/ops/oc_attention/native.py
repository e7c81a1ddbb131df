# SPDX-License-Identifier: MIT
"""The back end that both native libraries share: the CPU and the CUDA one have the same schemas."""

from typing import Any

import torch

from ocnet.ops import _extension
from ocnet.ops._backends import SUPPORTED, Support
from ocnet.ops.oc_attention.problem import BackwardCall, ForwardCall, Problem, refuse_common


class NativeBackend:
    """Calls ``torch.ops.ocnet_<half>``."""

    def __init__(self, half: str) -> None:
        self._half = half

    def supports(self, problem: Problem) -> Support:
        """Tell whether the library of this half takes the call."""
        refusal = refuse_common(problem, self._half)
        if refusal is not None:
            return refusal
        library = _extension.load(self._half)
        if library.problem is not None:
            return Support(False, library.problem, missing_build=True)
        return SUPPORTED

    def forward(self, call: ForwardCall) -> None:
        """Write the outputs of the call."""
        self._ops.oc_attention_fwd(*call)

    def backward(self, call: BackwardCall) -> None:
        """Write the gradients that are not ``None``."""
        self._ops.oc_attention_bwd(*call)

    @property
    def _ops(self) -> Any:
        return getattr(torch.ops, f"ocnet_{self._half}")
