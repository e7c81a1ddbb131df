# SPDX-License-Identifier: MIT
"""Pixel positions on maps of different sizes."""

import torch
from torch import Tensor

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def rescale_points(
    function: str, points: Tensor, size: tuple[int, int], new_size: tuple[int, int]
) -> Tensor:
    """Carry pixels of one map to the nearest pixels of another that covers the same picture.

    Corner pixels go to corner pixels, as in resizing with ``align_corners=True``; per axis
    ``round(p * (new_size - 1) / (size - 1))``, halves up.

    Args:
        function: Name of the caller, for messages.
        points: ``(P, 2)`` or ``(N, P, 2)``, integer, rows and columns in a map of ``size``.
        size: Rows and columns of the map the points are in.
        new_size: Rows and columns of the other map.

    Returns:
        Points of the shape of ``points``, int64, on its device.

    Raises:
        TypeError: ``points`` is not a tensor of integers.
        ValueError: Another shape, or a point outside the map.
    """
    if not isinstance(points, Tensor) or points.dtype not in _INTEGERS:
        got = str(points.dtype) if isinstance(points, Tensor) else type(points).__name__
        raise TypeError(f"{function}: points must be a tensor of integers, got {got}")
    if points.dim() not in (2, 3) or points.shape[-1] != 2:
        raise ValueError(
            f"{function}: points must have shape (P, 2) or (N, P, 2), got {tuple(points.shape)}"
        )
    points = points.long()
    old = torch.tensor(size, device=points.device)
    outside = ((points < 0) | (points >= old)).any(dim=-1)
    if bool(outside.any()):
        raise ValueError(
            f"{function}: points must lie in a map of {size[0]} rows and {size[1]} columns, "
            f"got {tuple(points[outside][0].tolist())}"
        )
    span = (old - 1).clamp(min=1)
    steps = torch.tensor(new_size, device=points.device) - 1
    return (2 * points * steps + span) // (2 * span)
