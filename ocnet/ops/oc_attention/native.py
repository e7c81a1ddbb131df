# SPDX-License-Identifier: MIT
"""The back end that both native libraries share: the CPU and the CUDA one have the same schemas."""

from typing import Any

import torch
from torch import Tensor

from ocnet.ops import _extension
from ocnet.ops._backends import SUPPORTED, Support
from ocnet.ops.oc_attention.problem import Problem, refuse_common


class NativeBackend:
    """Calls ``torch.ops.ocnet_<half>``; see docs/architecture.md for the arguments."""

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

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor,
        scale: float,
        out: Tensor,
        lse: Tensor,
        residual: Tensor | None,
    ) -> None:
        """Write ``out``, ``lse`` and ``residual``."""
        self._ops.oc_attention_fwd(query, key, value, scale, out, lse, residual)

    def backward(
        self,
        grad_out: Tensor,
        query: Tensor,
        key: Tensor | None,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        residual: Tensor | None,
        scale: float,
        grad_query: Tensor | None,
        grad_key: Tensor | None,
        grad_value: Tensor | None,
    ) -> None:
        """Write the gradients that are not ``None``."""
        self._ops.oc_attention_bwd(
            grad_out,
            query,
            key,
            value,
            out,
            lse,
            residual,
            scale,
            grad_query,
            grad_key,
            grad_value,
        )

    @property
    def _ops(self) -> Any:
        return getattr(torch.ops, f"ocnet_{self._half}")
