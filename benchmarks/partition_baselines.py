# SPDX-License-Identifier: MIT
"""The ways to attend within groups that are compared: the op by each of its back ends, and without it.

``published`` is what the published networks do with these maps: a pyramid slices its cells out, attends
cell by cell and concatenates; a step of ISA permutes its groups into a batch, and its result back.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.backends import Hopper, Op
from benchmarks.compiled import CompiledFresh, compile_refusal, flex_refusal
from ocnet.engine.partition_workload import FORMS as INSTALLED
from ocnet.engine.partition_workload import PartitionWorkload, attend, stages_of
from ocnet.engine.workload import Form, sdpa_builds_matrix
from ocnet.ops import Blocks, Grid, Partition
from ocnet.ops._partition import Axes
from ocnet.ops.oc_attention.reference import naive_attention
from ocnet.ops.partitioned_attention import cuda_backend
from ocnet.ops.partitioned_attention.autograd import BACKENDS
from ocnet.ops.partitioned_attention.problem import Problem

_HERE = "benchmarks.partition_baselines"

Stage = tuple[Tensor, Tensor, Tensor]
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def _problem(workload: PartitionWorkload) -> Problem:
    count = len(workload.partitions)
    return Problem(
        device=torch.device(workload.device),
        dtype=workload.torch_dtype,
        E=workload.E,
        Ev=workload.Ev,
        shared=workload.shared,
        images=(workload.N,) * count,
        axes=tuple(each.axes(workload.H, workload.W) for each in workload.partitions),
    )


OP = Op(
    attend,
    BACKENDS,
    _problem,
    Hopper(cuda_backend._HOPPER, lambda problem: int(problem.largest_group)),
)


def _published(*tensors: Tensor, partitions: Sequence[Partition]) -> list[Tensor]:
    return [
        _cell_by_cell(naive_attention, stage, partition)
        if isinstance(partition, Grid)
        else _permuted_maps(stage, partition)
        for stage, partition in zip(stages_of(tensors), partitions, strict=True)
    ]


def _sdpa(*tensors: Tensor, partitions: Sequence[Partition]) -> list[Tensor]:
    return [
        _cell_by_cell(_sdpa_of_maps, stage, partition)
        if isinstance(partition, Grid)
        else _permuted_tokens(stage, partition)
        for stage, partition in zip(stages_of(tensors), partitions, strict=True)
    ]


def _cell_by_cell(attention: Attention, stage: Stage, grid: Grid) -> Tensor:
    query, key, value = stage
    axes = grid.axes(query.shape[2], query.shape[3])
    cells = []
    for group in axes.each():
        here = (..., *group)
        own = query[here]
        cells.append(attention(own, own if key is query else key[here], value[here]))
    across = axes.columns.count
    lines = [torch.cat(cells[i : i + across], dim=3) for i in range(0, len(cells), across)]
    return torch.cat(lines, dim=2)


def _sdpa_of_maps(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    n, _, h, w = query.shape
    tokens = _tokens(query)
    keys = tokens if key is query else _tokens(key)
    out = F.scaled_dot_product_attention(tokens, keys, _tokens(value))
    return out.reshape(n, h, w, -1).permute(0, 3, 1, 2)


def _tokens(pixels: Tensor) -> Tensor:
    """Return ``(N, 1, H * W, C)``, channels side by side: a copy, but for whole channels_last maps."""
    n, c, h, w = pixels.shape
    return pixels.permute(0, 2, 3, 1).reshape(n, 1, h * w, c).contiguous()


def _tiles(pixels: Tensor, partition: Partition) -> Tensor:
    """View a map as ``(N, C, rows of tiles, h, columns of tiles, w)``."""
    assert not isinstance(partition, Grid)
    n, c, height, width = pixels.shape
    h, w = partition.h, partition.w
    return pixels.view(n, c, height // h, h, width // w, w)


def _permuted_maps(stage: Stage, partition: Partition) -> Tensor:
    """Attend by the plain formula on a batch of small maps."""
    inside, groups = _inside_and_between(partition)
    there = (0, *groups, 1, *inside)

    def batch(pixels: Tensor) -> Tensor:
        tiles = _tiles(pixels, partition).permute(there)
        return tiles.reshape(-1, *tiles.shape[3:])

    return _undo(_on_batches(naive_attention, stage, batch), stage, partition, there)


def _permuted_tokens(stage: Stage, partition: Partition) -> Tensor:
    """Attend by torch's kernel on a batch of token matrices, channels side by side."""
    inside, groups = _inside_and_between(partition)
    there = (0, *groups, *inside, 1)

    def batch(pixels: Tensor) -> Tensor:
        tiles = _tiles(pixels, partition).permute(there)
        return tiles.reshape(-1, 1, tiles.shape[3] * tiles.shape[4], tiles.shape[5]).contiguous()

    out = _on_batches(F.scaled_dot_product_attention, stage, batch)
    return _undo(out, stage, partition, there)


def _inside_and_between(partition: Partition) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return which axes of tiles count the pixels of a group, and which the groups."""
    within, across = (3, 5), (2, 4)
    return (within, across) if isinstance(partition, Blocks) else (across, within)


def _on_batches(attention: Attention, stage: Stage, batch: Callable[[Tensor], Tensor]) -> Tensor:
    query, key, value = stage
    queries = batch(query)
    return attention(queries, queries if key is query else batch(key), batch(value))


def _undo(out: Tensor, stage: Stage, partition: Partition, there: tuple[int, ...]) -> Tensor:
    """Return groups to their places in the map; channels stay where they are in memory."""
    value = stage[2]
    n, c, h, w = value.shape
    tiles = out.view(_tiles(value, partition).permute(there).shape)
    if there[-1] == 1:
        back = [there.index(axis) for axis in (0, 2, 3, 4, 5, 1)]
        return tiles.permute(back).reshape(n, h, w, c).permute(0, 3, 1, 2)
    return tiles.permute([there.index(axis) for axis in range(6)]).reshape(n, c, h, w)


def _flex_tokens(query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    out = flex_attention(query, key, value, block_mask=mask)
    if not isinstance(out, Tensor):
        raise TypeError(f"flex_attention: result must be a tensor, got {type(out)}")
    return out


_compiled_flex = CompiledFresh(_flex_tokens)


def _flex(*tensors: Tensor, partitions: Sequence[Partition]) -> list[Tensor]:
    """Mask what is in other groups; blocks of the matrix without a pair of one group are left out."""
    results = []
    for (query, key, value), partition in zip(stages_of(tensors), partitions, strict=True):
        n, _, h, w = query.shape
        tokens = _tokens(query)
        keys = tokens if key is query else _tokens(key)
        mask = _block_mask(partition.axes(h, w), query.device)
        out = _compiled_flex(tokens, keys, _tokens(value), mask=mask)
        assert isinstance(out, Tensor)
        results.append(out.reshape(n, h, w, -1).permute(0, 3, 1, 2))
    return results


@lru_cache(maxsize=8)
def _block_mask(axes: Axes, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    rows, columns = axes
    groups = torch.tensor(
        [
            rows.place(y)[0] * columns.count + columns.place(x)[0]
            for y in range(rows.size)
            for x in range(columns.size)
        ],
        device=device,
    )

    def together(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return groups[query] == groups[key]

    length = rows.size * columns.size
    return create_block_mask(together, None, None, length, length, device=device)


FORMS = {
    form.name: form
    for form in (
        *INSTALLED.values(),
        *OP.forms(_HERE),
        Form("published", _published, builds_matrix=lambda workload: True, provider=_HERE),
        Form("sdpa", _sdpa, builds_matrix=sdpa_builds_matrix, provider=_HERE),
        Form(
            "compile",
            CompiledFresh(_published),
            compile_refusal,
            builds_matrix=lambda workload: True,
            provider=_HERE,
        ),
        Form("flex", _flex, flex_refusal, provider=_HERE),
    )
}
