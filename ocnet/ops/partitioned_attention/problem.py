# SPDX-License-Identifier: MIT
"""What a call of attention within groups looks like to a back end: its stages, and their tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ocnet.ops._partition import Axes, Partition, stage_axes
from ocnet.ops._precision import tf32_allowed
from ocnet.ops.oc_attention.problem import DTYPES, refuse_common

__all__ = ["DTYPES", "MAX_STAGES", "BackwardCall", "ForwardCall", "Problem", "refuse_common"]

# Scales of a pyramid that one launch takes; csrc/partitioned_attention.h has the same number.
MAX_STAGES = 4


@dataclass(frozen=True)
class Problem:
    """Sizes and kinds of one call; see docs/architecture.md for the letters.

    Attributes:
        device: Where all its tensors are.
        dtype: Of all its maps.
        E: Channels of query and key.
        Ev: Channels of value.
        shared: Whether keys are the queries.
        images: Of each stage.
        axes: Partition of each stage.
        tf32: Whether float32 products may be rounded to TF32.
    """

    device: torch.device
    dtype: torch.dtype
    E: int
    Ev: int
    shared: bool
    images: tuple[int, ...]
    axes: tuple[Axes, ...]
    tf32: bool = False

    @staticmethod
    def of(
        query: Sequence[Tensor],
        key: Sequence[Tensor],
        value: Sequence[Tensor],
        partitions: Sequence[Partition],
    ) -> "Problem":
        """Describe a call on maps ``(N, C, H, W)``; no keys means the queries' maps."""
        first = query[0]
        return Problem(
            device=first.device,
            dtype=first.dtype,
            E=first.shape[1],
            Ev=value[0].shape[1],
            shared=len(key) == 0,
            images=tuple(stage.shape[0] for stage in query),
            axes=tuple(
                partition.axes(*stage.shape[2:])
                for partition, stage in zip(partitions, query, strict=True)
            ),
            tf32=tf32_allowed(first),
        )

    @staticmethod
    def of_call(call: "ForwardCall | BackwardCall") -> "Problem":
        """Describe what a back end was given."""
        first = call.query[0]
        return Problem(
            device=first.device,
            dtype=first.dtype,
            E=first.shape[2],
            Ev=call.value[0].shape[2],
            shared=len(call.key) == 0,
            images=tuple(stage.shape[0] for stage in call.query),
            axes=tuple(stage_axes(call.partition)),
            tf32=call.tf32,
        )

    @property
    def largest_group(self) -> int:
        """Pixels of the largest group of all stages."""
        return max(s.height * s.width for axes in self.axes for s in axes.shapes())


class ForwardCall(NamedTuple):
    """Token matrices to read, and to write, of every stage; in the order of the native schema.

    Attributes:
        query: ``(N, H * W, E)``.
        key: ``(N, H * W, E)``; an empty list where keys are the queries.
        value: ``(N, H * W, Ev)``.
        partition: The numbers of both axes of every stage, ``Axes.flat``.
        scale: Factor of the scores.
        tf32: Whether float32 products may be rounded to TF32, see ``ocnet.ops._precision``.
        out: ``(N, H * W, Ev)``, to write.
        lse: ``(N, H * W)``, to write: of the scores within the group, in the order of the map.
        residual: As ``out``, to write: what rounding took from it; an empty list where not wanted.
    """

    query: list[Tensor]
    key: list[Tensor]
    value: list[Tensor]
    partition: list[int]
    scale: float
    tf32: bool
    out: list[Tensor]
    lse: list[Tensor]
    residual: list[Tensor]


class BackwardCall(NamedTuple):
    """Token matrices to read, and the gradients to write; in the order of the native schema.

    Gradients whose list is empty are not wanted. Without keys, ``grad_query`` is that of both roles.
    """

    grad_out: list[Tensor]
    query: list[Tensor]
    key: list[Tensor]
    value: list[Tensor]
    out: list[Tensor]
    lse: list[Tensor]
    residual: list[Tensor]
    partition: list[int]
    scale: float
    tf32: bool
    grad_query: list[Tensor]
    grad_key: list[Tensor]
    grad_value: list[Tensor]
