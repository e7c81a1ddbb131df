# SPDX-License-Identifier: MIT
"""Maps and their token matrices: views, allocation, and the alignment that wide loads need."""

from typing import Any

import torch
from torch import Tensor

# Bytes of the widest load, and what a TMA descriptor asks of addresses and strides.
ALIGNMENT = 16


def layout_of(source: Tensor) -> torch.memory_format:
    """Return the layout in which results that belong to ``source`` are allocated.

    Channels_last when the channel is the unit stride (a slice of a channels_last map too), else
    contiguous. A fake tensor and its real twin have the same strides, so both get the same answer.
    """
    if source.shape[1] > 1 and source.stride(1) == 1 and not source.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def empty_map(source: Tensor, channels: Any) -> Tensor:
    """Allocate a map with the batch, rows, columns, dtype, device and layout of ``source``."""
    n, _, h, w = source.shape
    return torch.empty(
        (n, channels, h, w),
        dtype=source.dtype,
        device=source.device,
        memory_format=layout_of(source),
    )


def tokens(pixels: Tensor) -> Tensor:
    """View a map ``(N, C, H, W)`` as token rows ``(N, H * W, C)``.

    A copy is made only where rows and columns of pixels do not collapse into one stride.
    """
    return pixels.flatten(2).transpose(1, 2)


def aligned_rows(matrix: Tensor) -> Tensor:
    """Return a token matrix whose rows kernels can read 16 bytes at a time.

    Channels lie side by side, and every row starts at a multiple of 16 bytes. A matrix that is not so
    (NCHW, an odd number of channels) is copied, its rows padded: one pass over it, where the kernels
    make a pass per tile.

    Args:
        matrix: ``(N, tokens, C)``, any strides.

    Returns:
        ``matrix``, or a copy of it with channel stride 1.
    """
    width = ALIGNMENT // matrix.element_size()
    strides_fit = all(
        size == 1 or stride % width == 0
        for size, stride in zip(matrix.shape[:2], matrix.stride()[:2], strict=True)
    )
    side_by_side = matrix.stride(2) == 1 or matrix.shape[2] == 1
    if side_by_side and strides_fit and matrix.data_ptr() % ALIGNMENT == 0:
        return matrix
    n, length, channels = matrix.shape
    padded = matrix.new_empty((n, length, -(-channels // width) * width))
    return padded[..., :channels].copy_(matrix)
