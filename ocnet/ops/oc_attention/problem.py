# SPDX-License-Identifier: MIT
"""What a call of pixel-wise attention looks like to a back end: its sizes, and its tensors."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ocnet.ops._backends import Support, refuse_tensors
from ocnet.ops._precision import tf32_allowed

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MAX_CHANNELS = 512


@dataclass(frozen=True)
class Problem:
    """Sizes and kinds of one call; see docs/architecture.md for the letters."""

    device: torch.device
    dtype: torch.dtype
    N: int
    L: int
    S: int
    E: int
    Ev: int
    shared: bool
    tf32: bool = False  # whether float32 products may be rounded to TF32

    @staticmethod
    def of(query: Tensor, key: Tensor | None, value: Tensor) -> "Problem":
        """Describe a call on maps ``(N, C, H, W)``; ``key=None`` means the query's map."""
        n, e, h, w = query.shape
        return Problem(
            device=query.device,
            dtype=query.dtype,
            N=n,
            L=h * w,
            S=value.shape[2] * value.shape[3],
            E=e,
            Ev=value.shape[1],
            shared=key is None,
            tf32=tf32_allowed(query),
        )

    @staticmethod
    def of_call(call: "ForwardCall | BackwardCall") -> "Problem":
        """Describe what a back end was given."""
        n, length, e = call.query.shape
        return Problem(
            device=call.query.device,
            dtype=call.query.dtype,
            N=n,
            L=length,
            S=call.value.shape[1],
            E=e,
            Ev=call.value.shape[2],
            shared=call.key is None,
            tf32=call.tf32,
        )


class ForwardCall(NamedTuple):
    """Token matrices to read, and to write; in the order of the native schema.

    Attributes:
        query: ``(N, L, E)``.
        key: ``(N, S, E)``; ``None`` where it is the query.
        value: ``(N, S, Ev)``.
        scale: Factor of the scores.
        tf32: Whether float32 products may be rounded to TF32, see ``ocnet.ops._precision``.
        out: ``(N, L, Ev)``, to write.
        lse: ``(N, L)``, to write.
        residual: ``(N, L, Ev)``, to write; ``None`` where it is not wanted.
    """

    query: Tensor
    key: Tensor | None
    value: Tensor
    scale: float
    tf32: bool
    out: Tensor
    lse: Tensor
    residual: Tensor | None


class BackwardCall(NamedTuple):
    """Token matrices to read, and the gradients to write; in the order of the native schema.

    A gradient that is ``None`` is not wanted. Without a key, ``grad_query`` is that of both roles.
    """

    grad_out: Tensor
    query: Tensor
    key: Tensor | None
    value: Tensor
    out: Tensor
    lse: Tensor
    residual: Tensor | None
    scale: float
    tf32: bool
    grad_query: Tensor | None
    grad_key: Tensor | None
    grad_value: Tensor | None


class HasChannels(Protocol):
    """Any problem of attention: it is somewhere, in some dtype, and has channels."""

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of all its maps."""
        ...

    @property
    def tf32(self) -> bool:
        """Whether float32 products may be rounded to TF32."""
        ...

    @property
    def E(self) -> int:
        """Channels of query and key."""
        ...

    @property
    def Ev(self) -> int:
        """Channels of value."""
        ...


def refuse_common(problem: HasChannels, device_type: str) -> Support | None:
    """Return the refusal that any compiled back end gives, or ``None``."""
    refusal = refuse_tensors(problem.device, problem.dtype, device_type, DTYPES)
    if refusal is None and max(problem.E, problem.Ev) > MAX_CHANNELS:
        return Support(
            False, f"it takes up to {MAX_CHANNELS} channels, not E={problem.E}, Ev={problem.Ev}"
        )
    return refusal
