# SPDX-License-Identifier: MIT
"""The plain formula group by group, and an eager back end: groups of one shape are a batch of attention.

Groups are read and written through strided views of the map. The back end copies what it multiplies,
the groups of one shape at a time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ocnet.ops._backends import SUPPORTED, Support
from ocnet.ops._partition import Axes, Partition, Shape, stage_axes
from ocnet.ops.oc_attention import problem as attention
from ocnet.ops.oc_attention import reference
from ocnet.ops.partitioned_attention.problem import BackwardCall, ForwardCall, Problem


def naive_partitioned_attention(
    query: Tensor, key: Tensor, value: Tensor, partition: Partition, *, scale: float | None = None
) -> Tensor:
    """Compute attention within groups as published: slice each group out, and put its result in place.

    Differentiable by plain autograd, all in the dtype of the inputs.

    Args:
        query: ``(N, E, H, W)``.
        key: ``(N, E, H, W)``.
        value: ``(N, Ev, H, W)``.
        partition: ``Grid``, ``Blocks`` or ``Strided``.
        scale: Factor of the scores; ``E ** -0.5`` by default.

    Returns:
        ``(N, Ev, H, W)``, contiguous.

    Source: OCNet (arXiv 1809.00916), Pyramid-OC; ISA (arXiv 1907.12273), section 3.
    """
    out = torch.zeros_like(value, memory_format=torch.contiguous_format)
    for group in partition.axes(query.shape[2], query.shape[3]).each():
        here = (..., *group)
        out[here] = reference.naive_attention(query[here], key[here], value[here], scale=scale)
    return out


def supports(problem: Problem) -> Support:
    """Take every call: any device, any floating dtype."""
    return SUPPORTED


def forward(call: ForwardCall) -> None:
    """Write the outputs of the call."""
    for stage, axes in enumerate(stage_axes(call.partition)):
        written = [
            call.out[stage],
            call.lse[stage].unsqueeze(-1),
            *call.residual[stage : stage + 1],
        ]
        for shape in axes.shapes():
            rooms = [_room(matrix, axes, shape) for matrix in written]
            reference.forward(
                attention.ForwardCall(
                    query=_read(call.query[stage], axes, shape),
                    key=_read(call.key[stage], axes, shape) if call.key else None,
                    value=_read(call.value[stage], axes, shape),
                    scale=call.scale,
                    tf32=call.tf32,
                    out=rooms[0],
                    lse=rooms[1].squeeze(-1),
                    residual=rooms[2] if call.residual else None,
                )
            )
            _write(written, rooms, axes, shape)


def backward(call: BackwardCall) -> None:
    """Write the gradients that are wanted."""
    for stage, axes in enumerate(stage_axes(call.partition)):
        grads = (call.grad_query, call.grad_key, call.grad_value)
        written = [grad[stage] for grad in grads if grad]
        for shape in axes.shapes():
            rooms = [_room(matrix, axes, shape) for matrix in written]
            left = iter(rooms)
            targets = [next(left) if grad else None for grad in grads]
            reference.backward(
                attention.BackwardCall(
                    grad_out=_read(call.grad_out[stage], axes, shape),
                    query=_read(call.query[stage], axes, shape),
                    key=_read(call.key[stage], axes, shape) if call.key else None,
                    value=_read(call.value[stage], axes, shape),
                    out=_read(call.out[stage], axes, shape),
                    lse=_read(call.lse[stage].unsqueeze(-1), axes, shape).squeeze(-1),
                    residual=_read(call.residual[stage], axes, shape) if call.residual else None,
                    scale=call.scale,
                    tf32=call.tf32,
                    grad_query=targets[0],
                    grad_key=targets[1],
                    grad_value=targets[2],
                )
            )
            _write(written, rooms, axes, shape)


def _view(matrix: Tensor, axes: Axes, shape: Shape) -> Tensor:
    """Return the groups of one shape, ``(N, rows, columns, height, width, C)``, in place."""
    image, token, channel = matrix.stride()
    rows, columns = axes
    down = token * columns.size
    first = rows.position(shape.row, 0) * down + columns.position(shape.column, 0) * token
    size = (
        matrix.shape[0], shape.rows, shape.columns, shape.height, shape.width, matrix.shape[2],
    )  # fmt: skip
    strides = (
        image, rows.step * down, columns.step * token, rows.stride * down, columns.stride * token,
        channel,
    )  # fmt: skip
    return matrix.as_strided(size, strides, matrix.storage_offset() + first)


def _read(matrix: Tensor, axes: Axes, shape: Shape) -> Tensor:
    """Return the groups of one shape as a batch of token matrices."""
    return _view(matrix, axes, shape).reshape(-1, shape.height * shape.width, matrix.shape[2])


def _room(matrix: Tensor, axes: Axes, shape: Shape) -> Tensor:
    """Return an empty batch of what the groups of one shape have of a matrix."""
    batch = matrix.shape[0] * shape.rows * shape.columns
    return matrix.new_empty((batch, shape.height * shape.width, matrix.shape[2]))


def _write(matrices: Sequence[Tensor], batches: Sequence[Tensor], axes: Axes, shape: Shape) -> None:
    """Put batches of results where their groups are."""
    for matrix, batch in zip(matrices, batches, strict=True):
        place = _view(matrix, axes, shape)
        place.copy_(batch.view(place.shape))
