# SPDX-License-Identifier: MIT
"""Maps of any rank as dense matrices: planes of pixels, or rows of channels."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ocnet.ops._layout import ALIGNMENT


def in_rows(x: Tensor) -> bool:
    """Return whether results that belong to ``x`` have the channels of a pixel side by side.

    True where the channel is the unit stride (channels_last, a slice of it, ``(N, C)``), else false. A
    fake tensor and its real twin have the same strides, so both get the same answer.
    """
    if x.dim() == 2:
        return True
    return bool(x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous())


def empty_like_map(x: Tensor) -> Tensor:
    """Allocate a dense map of the shape, dtype, device and layout of ``x``."""
    if not in_rows(x):
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.dim() == 4:
        return torch.empty_like(x, memory_format=torch.channels_last)
    shape: tuple[Any, ...] = (x.shape[0], *x.shape[2:], x.shape[1])
    return x.new_empty(shape).movedim(-1, 1)


def as_matrix(x: Tensor, rows: bool) -> Tensor:
    """View a map as dense planes ``(N, C, L)`` or rows ``(R, C)``; a copy where it is not so.

    The copy is also made where the first number is not at a multiple of 16 bytes.
    """
    if not _is_dense(x, rows):
        x = x.movedim(1, -1).contiguous().movedim(-1, 1) if rows else x.contiguous()
    n, c = x.shape[:2]
    length = x.numel() // (n * c) if n > 0 else math.prod(x.shape[2:])
    # One pixel: the same memory, and rows are what kernels read well.
    if rows or length == 1:
        matrix = x.as_strided((n * length, c), (c, 1))
    else:
        matrix = x.view(n, c, length)
    return matrix if matrix.data_ptr() % ALIGNMENT == 0 else matrix.clone()


def is_matrix(x: Tensor) -> bool:
    """Return whether :func:`as_matrix` of a real tensor is a view, so that ``x`` can be overwritten."""
    return _is_dense(x, in_rows(x)) and x.data_ptr() % ALIGNMENT == 0


def _is_dense(x: Tensor, rows: bool) -> bool:
    if not rows or x.dim() == 2:
        return x.is_contiguous()
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).is_contiguous()


def wide_vectors(vectors: Iterable[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """Return contiguous vectors of channels in the accumulation dtype."""
    return [
        v if v is None or (v.dtype == dtype and v.is_contiguous()) else v.to(dtype).contiguous()
        for v in vectors
    ]
