# SPDX-License-Identifier: MIT
"""Triton back end: the kernels of ``oc_attention``, a program for each tile of rows of each group.

All stages of a call are in one launch of each kernel, whose programs find their stage, group and rows
in a table (``triton_items``). Maps are read as those of ``oc_attention`` are where there are no TMA
descriptors, which do not reach groups of pixels. Stages of small groups have kernels that keep a
whole group on chip (``triton_few``); which kernel a stage takes depends on the stage alone.
"""

import torch

from ocnet.ops import _triton
from ocnet.ops._backends import Support
from ocnet.ops._partition import Grid, stage_axes
from ocnet.ops.oc_attention import triton_plan
from ocnet.ops.oc_attention.configs import DELTA, Few, FewKernel, Kernel, Tile
from ocnet.ops.oc_attention.triton_plan import Plan
from ocnet.ops.partitioned_attention import configs, triton_few
from ocnet.ops.partitioned_attention.problem import (
    BackwardCall,
    ForwardCall,
    Problem,
    refuse_common,
)
from ocnet.ops.partitioned_attention.triton_items import largest
from ocnet.ops.partitioned_attention.triton_sides import Sides, Tensors, choose, strides


def supports(problem: Problem) -> Support:
    """Tell whether the Triton kernels take the call."""
    return _triton.supports(problem, refuse_common, triton_plan.kernels)


def _sides(plan: Plan, call: ForwardCall | BackwardCall) -> Sides:
    """Return what both directions read, in rows that the kernels can read."""
    query = [plan.rows(each) for each in call.query]
    return Sides(
        axes=stage_axes(call.partition),
        query=query,
        key=[plan.rows(each) for each in call.key] or query,
        value=[plan.rows(each) for each in call.value],
        scale=call.scale,
        lse=call.lse,
        grad_out=[],
        delta=[],
    )


def _tile(plan: Plan, kernel: Kernel) -> Tile:
    return configs.choose(kernel, plan.math, plan.hopper, triton_plan.version(), plan.e, plan.ev)


def _by_tile(plan: Plan, kernel: FewKernel, sides: Sides) -> dict[Few | None, list[int]]:
    """Return which stages keep their groups on chip, by the tile that does so; the others by ``None``."""
    found: dict[Few | None, list[int]] = {}
    for stage, axes in enumerate(sides.axes):
        tile = configs.few_keys(kernel, plan.math, plan.hopper, plan.e, plan.ev, largest(axes))
        found.setdefault(tile, []).append(stage)
    return found


def forward(call: ForwardCall) -> None:
    """Write the outputs of the call."""
    with _triton.on(call.query[0].device):
        plan = Plan.of(call.query[0], call.value[0], call.tf32, segments=True)
        sides = _sides(plan, call)
        out = [triton_plan.rows_for(each) for each in call.out]
        rest = [triton_plan.rows_for(each) for each in call.residual]
        for tile, stages in _by_tile(plan, "few", sides).items():
            some = sides.only(stages), choose(out, stages), choose(rest, stages)
            if tile is None:
                _forward(plan, not call.key, *some)
            else:
                triton_few.forward(plan, tile, *some)
        _deliver(out + rest, call.out + call.residual)


def _deliver(rows: Tensors, results: Tensors) -> None:
    for written, result in zip(rows, results, strict=True):
        triton_plan.deliver(written, result)


def _forward(plan: Plan, shared: bool, sides: Sides, out: Tensors, rest: Tensors) -> None:
    tile = _tile(plan, "forward")
    table = sides.items(tile.rows)
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
        **strides("q", "nl", sides.query),
        **strides("k", "ns", sides.key),
        **strides("v", "ns", sides.value),
        **strides("o", "nl", out),
        scale=sides.scale,
        N=None,
        L=None,
        S=None,
        **plan.common(tile),
    )


def backward(call: BackwardCall) -> None:
    """Write the gradients whose lists are not empty."""
    with _triton.on(call.query[0].device):
        plan = Plan.of(call.query[0], call.value[0], call.tf32, segments=True)
        sides = _sides(plan, call)._replace(
            grad_out=[plan.rows(each) for each in call.grad_out],
            delta=[torch.empty_like(each) for each in call.lse],
        )
        features = len(call.grad_query) > 0 or len(call.grad_key) > 0
        if not call.key:
            if features:
                _backward_delta(sides, call)
            _backward_keys(plan, "both", sides, call.grad_query, call.grad_value)
            return
        if features:
            _backward_query(plan, sides, call)
        _backward_keys(plan, "key", sides, call.grad_key, call.grad_value)


def _backward_query(plan: Plan, sides: Sides, call: BackwardCall) -> None:
    """Write ``sides.delta``, and the gradients of the queries where they are wanted."""
    for tile, stages in _by_tile(plan, "few_query", sides).items():
        some, wanted = sides.only(stages), choose(call.grad_query, stages)
        if tile is None:
            _backward_delta(some, call, stages)
            _backward_pass(plan, "query", some, wanted, [])
        else:
            rows = [triton_plan.rows_for(each) for each in wanted]
            triton_few.backward_query(plan, tile, some, rows)
            _deliver(rows, wanted)


def _backward_keys(
    plan: Plan, kernel: Kernel, sides: Sides, grad_feature: Tensors, grad_value: Tensors
) -> None:
    """Write the gradients of the keys' features and values, in one pass where a tile holds both."""
    if _tile(plan, kernel).out_v > 0:
        _backward_pass(plan, kernel, sides, grad_feature, grad_value)
        return
    _backward_pass(plan, kernel, sides, grad_feature, [])
    _backward_pass(plan, "value", sides, [], grad_value)


def _backward_delta(sides: Sides, call: BackwardCall, stages: list[int] | None = None) -> None:
    """Write ``sides.delta``, whose stages are some of the call's."""
    stages = list(range(len(call.out))) if stages is None else stages
    grad_out, out = choose(call.grad_out, stages), choose(call.out, stages)
    residual = choose(call.residual, stages)
    # No row of this kernel meets another, so a map is one group.
    whole = [Grid(1).axes(axes.rows.size, axes.columns.size) for axes in sides.axes]
    table = sides._replace(axes=whole).items(DELTA.rows)
    triton_plan.kernels().oc_attention_bwd_delta_kernel[(len(table),)](
        p_grad_out=tuple(grad_out),
        p_out=tuple(out),
        p_residual=tuple(residual or out),
        RESIDUAL=len(residual) > 0,
        p_delta=tuple(sides.delta),
        p_items=table,
        **strides("g", "nlv", grad_out),
        **strides("o", "nlv", out),
        L=None,
        **triton_plan.delta_common(out[0].shape[2]),
    )


def _backward_pass(
    plan: Plan, kernel: Kernel, sides: Sides, grad_feature: Tensors, grad_value: Tensors
) -> None:
    """Launch one row-stationary pass, whose rows are queries, keys, or both, of every group.

    The tile depends on the kernel alone, as in ``oc_attention``.
    """
    if not grad_feature and not grad_value:
        return
    tile = _tile(plan, kernel)
    row, col = (sides.query, sides.key) if kernel == "query" else (sides.key, sides.query)
    out_v = tile.out if kernel == "value" else tile.out_v
    features, values = (
        [triton_plan.rows_for(g) for g in grad] for grad in (grad_feature, grad_value)
    )
    table = sides.items(tile.rows)
    pieces = -(-plan.e // tile.out) if features else -(-plan.ev // out_v)
    triton_plan.kernels().oc_attention_bwd_kernel[(len(table) * pieces,)](
        x_row=tuple(row),
        x_col=tuple(col),
        x_value_row=tuple(sides.value),
        x_grad_row=tuple(sides.grad_out),
        x_col_out=None,
        x_value_col=None,
        x_grad_col=None,
        x_grad_col_out=None,
        p_lse=tuple(sides.lse),
        p_delta=tuple(sides.delta),
        p_out=tuple(features or values),
        p_out_value=tuple(values or features),
        p_items=table,
        PIECES=pieces,
        stride_oz=0,
        stride_wz=0,
        **strides("r", "nm", row),
        **strides("c", "ns", col),
        **strides("v", "ns", sides.value),
        **strides("g", "nl", sides.grad_out),
        **strides("o", "nm", features or values),
        **strides("w", "nm", values or features),
        scale=sides.scale,
        ROWS=None,
        COLS=None,
        AS_QUERY=len(features) > 0 and kernel in ("query", "both"),
        AS_KEY=len(features) > 0 and kernel in ("key", "both"),
        AS_VALUE=len(values) > 0,
        BV=tile.slice_v,
        NV=plan.wide_ev // tile.slice_v,
        BO=tile.out,
        BW=out_v,
        SPLITS=1,
        **plan.common(tile),
    )
    _deliver(features + values, grad_feature + grad_value)
