# SPDX-License-Identifier: MIT
"""Launches of the Triton kernels that keep all keys and values of a group on chip."""

from typing import Any

from ocnet.ops.oc_attention import triton_plan
from ocnet.ops.oc_attention.configs import Few
from ocnet.ops.oc_attention.triton_plan import Plan
from ocnet.ops.partitioned_attention.triton_items import largest
from ocnet.ops.partitioned_attention.triton_sides import Sides, Tensors, strides


def forward(plan: Plan, tile: Few, sides: Sides, out: Tensors, rest: Tensors) -> None:
    """Write outputs, and with ``rest`` what rounding takes from them, in rows that the kernel takes."""
    wide = min(tile.out, plan.wide_ev)
    pieces = -(-plan.ev // wide)
    programs = _programs(plan, tile, sides, pieces)
    table = sides.items(tile.rows, programs)
    triton_plan.kernels().oc_attention_few_fwd_kernel[(len(table) * pieces,)](
        p_out=tuple(out),
        p_lse=tuple(sides.lse),
        p_residual=tuple(rest or out),
        RESIDUAL=len(rest) > 0,
        x_key0=tuple(sides.key),
        x_key1=None,
        x_value0=tuple(sides.value),
        x_value1=None,
        B0=tile.keys0,
        B1=tile.keys1,
        BO=wide,
        PIECES=pieces,
        PROGRAMS=programs,
        p_items=table,
        **strides("o", "nl", out),
        **_common(plan, tile, sides),
    )


def backward_query(plan: Plan, tile: Few, sides: Sides, written: Tensors) -> None:
    """Write ``sides.delta``, and the gradients of the queries where there are rows for them."""
    programs = _programs(plan, tile, sides, 1)
    table = sides.items(tile.rows, programs)
    rows = written or sides.grad_out
    triton_plan.kernels().oc_attention_few_bwd_query_kernel[(len(table),)](
        x_key=tuple(sides.key),
        x_value=tuple(sides.value),
        x_grad_out=tuple(sides.grad_out),
        p_lse=tuple(sides.lse),
        p_delta=tuple(sides.delta),
        p_grad_query=tuple(rows),
        WANTED=len(written) > 0,
        BS=tile.keys0,
        BV=plan.wide_ev,
        PROGRAMS=programs,
        p_items=table,
        **strides("g", "nl", sides.grad_out),
        **strides("o", "nl", rows),
        **_common(plan, tile, sides),
    )


def _programs(plan: Plan, tile: Few, sides: Sides, pieces: int) -> int:
    """Return the programs that share the query tiles of a group, where ``pieces`` run per tile."""
    pairs = zip(sides.query, sides.axes, strict=True)
    groups = sum(len(query) * axes.groups for query, axes in pairs)
    tiles = -(-max(largest(axes) for axes in sides.axes) // tile.rows)
    return max(1, min(tiles, plan.multiprocessors // pieces // max(groups, 1)))


def _common(plan: Plan, tile: Few, sides: Sides) -> dict[str, Any]:
    """Return the arguments that both kernels share."""
    return {
        "x_query": tuple(sides.query),
        **strides("q", "nl", sides.query),
        **strides("k", "ns", sides.key),
        **strides("v", "ns", sides.value),
        "L": None,
        "S": None,
        **plan.few_common(tile, sides.scale),
    }
