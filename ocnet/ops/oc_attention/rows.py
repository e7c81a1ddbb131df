# SPDX-License-Identifier: MIT
"""``attention_rows``: the softmax rows of chosen pixels, to draw attention without the matrix."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ocnet.ops._checks import check_integers, check_keys, shape_of
from ocnet.ops._layout import tokens
from ocnet.ops._partition import KINDS, Axis, Partition
from ocnet.ops.oc_attention.problem import DTYPES

_NAME = "attention_rows"
Points = Tensor | Sequence[Sequence[int]]


def attention_rows(
    query: Tensor,
    key: Tensor,
    points: Points,
    *,
    scale: float | None = None,
    partition: Partition | None = None,
) -> Tensor:
    """Return the attention maps of chosen query pixels, in ``O(P * S)`` time and memory.

    ``rows[n, p, s] = softmax_s(scale * <query[n, :, points[n, p]], key[n, :, s]>)``; with a partition
    the softmax is that within the group of the point, and zero outside of it.

    Args:
        query: ``(N, E, H, W)``, floating.
        key: ``(N, E, Hk, Wk)``, same dtype and device.
        points: ``(P, 2)`` or ``(N, P, 2)`` integers, each ``(row, column)`` in query pixels; a
            tensor or nested sequences.
        scale: Factor of the scores; ``E ** -0.5`` by default.
        partition: ``Grid``, ``Blocks`` or ``Strided``, as :func:`ocnet.ops.partitioned_attention`
            takes it; query and key must be of one size then.

    Returns:
        ``(N, P, Hk, Wk)``, float32 (float64 for float64 inputs); each map sums to 1.

    Raises:
        TypeError: Not tensors, not floating, points that are not integers, or no partition.
        ValueError: Shapes that do not fit, or a point outside the query map. Points that already
            are on a GPU are not read back to check them; there the gather itself fails.

    Source:
        The rows of the matrix of OCNet (arXiv 1809.00916), equation 1.
    """
    check_keys(_NAME, query, key, DTYPES)
    n, e, h, w = query.shape
    if partition is not None:
        _check_partition(query, key, partition)
    index = _token_index(points, n, h, w).to(query.device)
    factor = e**-0.5 if scale is None else scale
    wide = torch.promote_types(query.dtype, torch.float32)
    chosen = tokens(query).gather(1, index.unsqueeze(-1).expand(-1, -1, e)).to(wide)
    scores = factor * torch.einsum("npe,nehw->nphw", chosen, key.to(wide))
    if partition is not None:
        scores = scores.masked_fill(~_same_group(partition, index, h, w), -torch.inf)
    return torch.softmax(scores.flatten(2), dim=-1).reshape(scores.shape)


def _check_partition(query: Tensor, key: Tensor, partition: Partition) -> None:
    if not isinstance(partition, KINDS):
        kinds = ", ".join(kind.__name__ for kind in KINDS)
        raise TypeError(
            f"{_NAME}: partition must be one of {kinds}, got {type(partition).__name__}"
        )
    if query.shape[2:] != key.shape[2:]:
        raise ValueError(
            f"{_NAME}: key must have the rows and columns of query with a partition, "
            f"{query.shape[2]} x {query.shape[3]}, got {shape_of(key)}"
        )


def _same_group(partition: Partition, index: Tensor, h: int, w: int) -> Tensor:
    """Tell which pixels are in the group of each point: ``(N, P, H, W)``."""
    axes = partition.axes(h, w)
    rows, columns = _groups(axes.rows, index.device), _groups(axes.columns, index.device)
    same_row = rows[index // w].unsqueeze(-1) == rows
    same_column = columns[index % w].unsqueeze(-1) == columns
    return same_row.unsqueeze(-1) & same_column.unsqueeze(-2)


def _groups(axis: Axis, device: torch.device) -> Tensor:
    """Return the group of every position of an axis."""
    return torch.tensor([axis.place(each)[0] for each in range(axis.size)], device=device)


def _token_index(points: Points, n: int, h: int, w: int) -> Tensor:
    where = points if isinstance(points, Tensor) else torch.tensor(points)
    check_integers(_NAME, "points", where)
    if where.dim() not in (2, 3) or where.shape[-1] != 2 or where.shape[:-2] not in ((), (n,)):
        raise ValueError(
            f"{_NAME}: points must have shape (P, 2) or ({n}, P, 2), got {shape_of(where)}"
        )
    rows, columns = where[..., 0], where[..., 1]
    inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
    if where.device.type == "cpu" and not bool(inside.all()):
        bad = tuple(where[~inside][0].tolist())
        raise ValueError(f"{_NAME}: points must lie within {h} x {w} pixels, got {bad}")
    return (rows * w + columns).long().expand(n, -1)
