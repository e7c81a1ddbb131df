# SPDX-License-Identifier: MIT
"""Work items of a launch of the Triton kernels on groups: a tile of rows of one group each.

The table of a launch depends on sizes alone. It is made once and stays on the device, so that a
launch copies nothing.
"""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ocnet.ops._partition import Axes, Axis

# Tables that are kept; an item is 40 bytes.
_TABLES = 256
# A CUDA graph reads its tables as long as it lives.
_CAPTURED: set[Tensor] = set()

Numbers = np.ndarray[Any, np.dtype[np.int64]]


def items(
    axes: tuple[Axes, ...],
    images: tuple[int, ...],
    rows: int,
    programs: int | None,
    device: torch.device,
) -> Tensor:
    """Return the work items of a launch, those of the largest groups first.

    Items of groups of one size are in order of stage, image, group and row.

    Args:
        axes: Partition of each stage.
        images: Of each stage.
        rows: Tokens of a tile.
        programs: Items of a group, at most: those of its first tiles. ``None``: all.
        device: Of the kernel that reads them.

    Returns:
        int32 ``(items, 10)``, with the numbers that ``work_item`` of the kernels reads.
    """
    table = _table(axes, images, rows, programs, device)
    if device.type == "cuda":
        # The stream of this launch need not be the one that the table was made on.
        table.record_stream(torch.cuda.current_stream(device))
        if torch.cuda.is_current_stream_capturing():
            _CAPTURED.add(table)
    return table


@functools.lru_cache(_TABLES)
def _table(
    axes: tuple[Axes, ...],
    images: tuple[int, ...],
    rows: int,
    programs: int | None,
    device: torch.device,
) -> Tensor:
    stages = zip(axes, images, strict=True)
    table = np.concatenate(
        [_of_stage(stage, *each, rows, programs) for stage, each in enumerate(stages)]
    )
    largest_first = np.argsort(-table[:, 3], kind="stable")
    return torch.from_numpy(table[largest_first].astype(np.int32)).to(device)


def _of_stage(stage: int, axes: Axes, images: int, rows: int, programs: int | None) -> Numbers:
    groups = _groups(axes)
    tiles = np.minimum(-(-groups[:, 0] // rows), programs or largest(axes))
    group = np.repeat(np.arange(len(groups)), tiles)
    tile = np.arange(len(group)) - (np.cumsum(tiles) - tiles)[group]
    image = np.repeat(np.arange(images), len(group))
    return np.column_stack(
        (
            np.full_like(image, stage),
            image,
            np.tile(tile * rows, images),
            np.tile(groups[group], (images, 1)),
        )
    )


def _groups(axes: Axes) -> Numbers:
    """Return the numbers of each group that its items share."""
    width = axes.columns.size
    top, height = (each[:, None] for each in _cuts(axes.rows))
    left, length = _cuts(axes.columns)
    factor, shift = np.array([_divisor(int(each)) for each in length]).T
    step = axes.columns.stride
    columns = (
        height * length,
        axes.rows.size * width,
        top * width + left,
        step,
        axes.rows.stride * width - length * step,
        factor,
        shift,
    )
    return np.stack([each.ravel() for each in np.broadcast_arrays(*columns)], 1)


def largest(axes: Axes) -> int:
    """Return the tokens of the largest group."""
    return max(shape.height * shape.width for shape in axes.shapes())


def _cuts(axis: Axis) -> tuple[Numbers, Numbers]:
    """Return the first position and the extent of every group of an axis."""
    groups = range(axis.count)
    first = np.array([axis.position(group, 0) for group in groups])
    return first, np.array([axis.extent(group) for group in groups])


def _divisor(number: int) -> tuple[int, int]:
    """Return factor and shift of a division by a number, as ``Divisor`` of segments.h has them."""
    shift = (number - 1).bit_length()
    return (((1 << shift) - number) << 32) // number + 1, shift
