# SPDX-License-Identifier: MIT
"""What a call of spatial gathering looks like to a back end: its sizes, and its tensors."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ocnet.ops._backends import Support, refuse_tensors

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MAX_CHANNELS = 1024
MAX_REGIONS = 512


@dataclass(frozen=True)
class Problem:
    """Sizes and kinds of one call; see docs/architecture.md for the letters."""

    device: torch.device
    dtype: torch.dtype
    N: int
    L: int
    C: int
    K: int

    @staticmethod
    def of(features: Tensor, logits: Tensor) -> "Problem":
        """Describe a call on maps ``(N, C, H, W)`` and ``(N, K, H, W)``."""
        n, c, h, w = features.shape
        return Problem(features.device, features.dtype, n, h * w, c, logits.shape[1])


class ForwardCall(NamedTuple):
    """Token matrices to read, and to write; in the order of the native schema.

    Attributes:
        features: ``(N, L, C)``.
        logits: ``(N, L, K)``.
        scale: Factor of the logits.
        tf32: Whether float32 products may be rounded to TF32, see ``ocnet.ops._precision``.
        out: ``(N, K, C)``, to write.
        lse: ``(N, K)``, to write: natural logarithm of ``sum_l exp(scale * logits[l, k])``.
        residual: ``(N, K, C)``, to write: what rounding took from ``out``; ``None`` where it is not
            wanted.
    """

    features: Tensor
    logits: Tensor
    scale: float
    tf32: bool
    out: Tensor
    lse: Tensor
    residual: Tensor | None


class BackwardCall(NamedTuple):
    """Token matrices to read, and the gradients to write; in the order of the native schema.

    A gradient that is ``None`` is not wanted.
    """

    grad_out: Tensor
    features: Tensor
    logits: Tensor
    out: Tensor
    lse: Tensor
    residual: Tensor | None
    scale: float
    tf32: bool
    grad_features: Tensor | None
    grad_logits: Tensor | None


def refuse_common(problem: Problem, device_type: str) -> Support | None:
    """Return the refusal that any compiled back end gives, or ``None``."""
    refusal = refuse_tensors(problem.device, problem.dtype, device_type, DTYPES)
    if refusal is None and (problem.C > MAX_CHANNELS or problem.K > MAX_REGIONS):
        return Support(
            False,
            f"it takes up to {MAX_CHANNELS} channels and {MAX_REGIONS} regions, "
            f"not C={problem.C}, K={problem.K}",
        )
    return refusal
