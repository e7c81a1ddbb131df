# SPDX-License-Identifier: MIT
"""Triton back end: the kernels of ``oc_attention``, a program for each tile of rows of each group.

All stages of a call are in one launch of each kernel, whose programs find their stage, group and rows
in a table (``triton_items``). Maps are read as those of ``oc_attention`` are where there are no TMA
descriptors, which do not reach groups of pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ocnet.ops import _triton
from ocnet.ops._backends import Support
from ocnet.ops.oc_attention import configs, triton_plan
from ocnet.ops.oc_attention.triton_plan import Plan
from ocnet.ops.partitioned_attention.partition import Axes, Axis
from ocnet.ops.partitioned_attention.problem import (
    BackwardCall,
    ForwardCall,
    Problem,
    refuse_common,
)
from ocnet.ops.partitioned_attention.triton_items import items

Tensors = list[Tensor]


def supports(problem: Problem) -> Support:
    """Tell whether the Triton kernels take the call."""
    return _triton.supports(problem, refuse_common, triton_plan.kernels)


class Sides(NamedTuple):
    """What the kernels read, a tensor for each stage; without a backward, the last three are empty."""

    axes: tuple[Axes, ...]
    query: Tensors
    key: Tensors
    value: Tensors
    scale: float
    grad_out: Tensors
    lse: Tensors
    delta: Tensors

    @property
    def images(self) -> tuple[int, ...]:
        """Images of each stage."""
        return tuple(query.shape[0] for query in self.query)


def _axes(partition: list[int]) -> tuple[Axes, ...]:
    """Return the partitions that a call's numbers stand for."""
    axis = [Axis(*partition[i : i + 4]) for i in range(0, len(partition), 4)]
    return tuple(Axes(*each) for each in zip(axis[::2], axis[1::2], strict=True))


def forward(call: ForwardCall) -> None:
    """Write the outputs of the call."""
    with _triton.on(call.query[0].device):
        plan = Plan.of(call.query[0], call.value[0], call.tf32, segments=True)
        query = [plan.rows(each) for each in call.query]
        sides = Sides(
            axes=_axes(call.partition),
            query=query,
            key=[plan.rows(each) for each in call.key] or query,
            value=[plan.rows(each) for each in call.value],
            scale=call.scale,
            grad_out=[],
            lse=call.lse,
            delta=[],
        )
        out = [triton_plan.rows_for(each) for each in call.out]
        rest = [triton_plan.rows_for(each) for each in call.residual]
        _forward(plan, sides, not call.key, out, rest)
        for rows, result in zip(out + rest, call.out + call.residual, strict=True):
            triton_plan.deliver(rows, result)


def _forward(plan: Plan, sides: Sides, shared: bool, out: Tensors, rest: Tensors) -> None:
    tile = plan.tile("forward")
    table = _items(sides, tile.rows)
    pieces = -(-plan.ev // tile.out)
    triton_plan.kernels().oc_attention_fwd_kernel[(len(table) * pieces,)](
        x_query=tuple(sides.query),
        x_key=tuple(sides.key),
        x_value=tuple(sides.value),
        p_out=tuple(out),
        p_lse=tuple(sides.lse),
        p_residual=tuple(rest or out),
        p_max=None,
        p_items=table,
        PIECES=pieces,
        RESIDUAL=len(rest) > 0,
        DIAGONAL=shared,
        SPLITS=1,
        BO=tile.out,
        stride_oz=0,
        **_strides("q", "nl", sides.query),
        **_strides("k", "ns", sides.key),
        **_strides("v", "ns", sides.value),
        **_strides("o", "nl", out),
        scale=sides.scale,
        N=None,
        L=None,
        S=None,
        **plan.common(tile),
    )


def _items(sides: Sides, rows: int, programs: int | None = None) -> Tensor:
    most = max(each.rows.size * each.columns.size for each in sides.axes)
    return items(sides.axes, sides.images, rows, programs or most, sides.query[0].device)


def _strides(matrix: str, axes: str, tensors: Sequence[Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the kernel's names of the leading strides of a tensor of each stage, with their values."""
    return {
        f"stride_{matrix}{axis}": tuple(each.stride(i) for each in tensors)
        for i, axis in enumerate(axes)
    }


def backward(call: BackwardCall) -> None:
    """Write the gradients whose lists are not empty."""
    with _triton.on(call.query[0].device):
        plan = Plan.of(call.query[0], call.value[0], call.tf32, segments=True)
        query = [plan.rows(each) for each in call.query]
        sides = Sides(
            axes=_axes(call.partition),
            query=query,
            key=[plan.rows(each) for each in call.key] or query,
            value=[plan.rows(each) for each in call.value],
            scale=call.scale,
            grad_out=[plan.rows(each) for each in call.grad_out],
            lse=call.lse,
            delta=[torch.empty_like(each) for each in call.lse],
        )
        if call.grad_query or call.grad_key:
            _backward_delta(sides, call)
        if not call.key:
            _backward_keys(plan, "both", sides, call.grad_query, call.grad_value)
        else:
            _backward_pass(plan, "query", sides, call.grad_query, [])
            _backward_keys(plan, "key", sides, call.grad_key, call.grad_value)


def _backward_keys(
    plan: Plan, kernel: configs.Kernel, sides: Sides, grad_feature: Tensors, grad_value: Tensors
) -> None:
    """Write the gradients of the keys' features and values, in one pass where a tile holds both."""
    if plan.tile(kernel).out_v > 0:
        _backward_pass(plan, kernel, sides, grad_feature, grad_value)
        return
    _backward_pass(plan, kernel, sides, grad_feature, [])
    _backward_pass(plan, "value", sides, [], grad_value)


def _backward_delta(sides: Sides, call: BackwardCall) -> None:
    ev = call.out[0].shape[2]
    tile = configs.DELTA
    # No row of this kernel meets another, so a map is one group.
    whole = tuple(
        Axes(Axis.cells(each.rows.size, 1), Axis.cells(each.columns.size, 1)) for each in sides.axes
    )
    table = _items(sides._replace(axes=whole), tile.rows)
    triton_plan.kernels().oc_attention_bwd_delta_kernel[(len(table),)](
        p_grad_out=tuple(call.grad_out),
        p_out=tuple(call.out),
        p_residual=tuple(call.residual or call.out),
        RESIDUAL=len(call.residual) > 0,
        p_delta=tuple(sides.delta),
        p_items=table,
        **_strides("g", "nlv", call.grad_out),
        **_strides("o", "nlv", call.out),
        L=None,
        Ev=ev,
        EVEN_V=ev % tile.channels(ev) == 0,
        BM=tile.rows,
        BV=tile.channels(ev),
        NV=-(-ev // tile.channels(ev)),
        enable_fp_fusion=True,
    )


def _backward_pass(
    plan: Plan, kernel: configs.Kernel, sides: Sides, grad_feature: Tensors, grad_value: Tensors
) -> None:
    """Launch one row-stationary pass, whose rows are queries, keys, or both, of every group.

    The tile depends on the kernel alone, as in ``oc_attention``.
    """
    if not grad_feature and not grad_value:
        return
    tile = plan.tile(kernel)
    row, col = (sides.query, sides.key) if kernel == "query" else (sides.key, sides.query)
    out_v = tile.out if kernel == "value" else tile.out_v
    written = [[triton_plan.rows_for(each) for each in grad] for grad in (grad_feature, grad_value)]
    feature, value = written[0] or written[1], written[1] or written[0]
    table = _items(sides, tile.rows)
    pieces = -(-plan.e // tile.out) if grad_feature else -(-plan.ev // out_v)
    triton_plan.kernels().oc_attention_bwd_kernel[(len(table) * pieces,)](
        x_row=tuple(row),
        x_col=tuple(col),
        x_value_row=tuple(sides.value),
        x_grad_row=tuple(sides.grad_out),
        **dict.fromkeys(
            ("x_col_out", "x_value_col", "x_grad_col", "x_grad_col_out", "ROWS", "COLS")
        ),
        p_lse=tuple(sides.lse),
        p_delta=tuple(sides.delta),
        p_out=tuple(feature),
        p_out_value=tuple(value),
        p_items=table,
        PIECES=pieces,
        stride_oz=0,
        stride_wz=0,
        **_strides("r", "nm", row),
        **_strides("c", "ns", col),
        **_strides("v", "ns", sides.value),
        **_strides("g", "nl", sides.grad_out),
        **_strides("o", "nm", feature),
        **_strides("w", "nm", value),
        scale=sides.scale,
        AS_QUERY=len(grad_feature) > 0 and kernel in ("query", "both"),
        AS_KEY=len(grad_feature) > 0 and kernel in ("key", "both"),
        AS_VALUE=len(grad_value) > 0,
        BV=tile.slice_v,
        NV=plan.wide_ev // tile.slice_v,
        BO=tile.out,
        BW=out_v,
        SPLITS=1,
        **plan.common(tile),
    )
    for rows, result in zip(written[0] + written[1], grad_feature + grad_value, strict=True):
        triton_plan.deliver(rows, result)
