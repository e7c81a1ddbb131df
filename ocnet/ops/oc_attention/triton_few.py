# SPDX-License-Identifier: MIT
"""Launches of the Triton kernels that keep all keys and values of an image on chip."""

from typing import Any

from torch import Tensor

from ocnet.ops import _triton
from ocnet.ops.oc_attention import configs, triton_plan
from ocnet.ops.oc_attention.problem import ForwardCall
from ocnet.ops.oc_attention.triton_plan import Plan, Sides


def forward(plan: Plan, tile: configs.Few, call: ForwardCall) -> None:
    """Write the outputs of a call whose inputs are rows that the kernels can read."""
    query, key, value, scale, _, out, lse, residual = call
    key = query if key is None else key
    wide = min(tile.out, plan.wide_ev)
    pieces = -(-plan.ev // wide)
    programs = _programs(plan, tile, query, pieces)
    rows = triton_plan.rows_for(out)
    rest = None if residual is None else triton_plan.rows_for(residual)
    triton_plan.kernels().oc_attention_few_fwd_kernel[(query.shape[0] * programs, pieces)](
        p_out=rows,
        p_lse=lse,
        p_residual=rows if rest is None else rest,
        RESIDUAL=rest is not None,
        x_key0=plan.window(key, tile.keys0, plan.wide_e),
        x_key1=plan.window(key, tile.keys1, plan.wide_e, tile.keys1 > 0),
        x_value0=plan.window(value, tile.keys0, wide),
        x_value1=plan.window(value, tile.keys1, wide, tile.keys1 > 0),
        B0=tile.keys0,
        B1=tile.keys1,
        BO=wide,
        PROGRAMS=programs,
        **_triton.strides("o", "nl", rows),
        **_common(plan, tile, query, key, value, scale),
    )
    triton_plan.deliver(rows, out)
    if residual is not None and rest is not None:
        triton_plan.deliver(rest, residual)


def backward_query(plan: Plan, tile: configs.Few, sides: Sides, grad_query: Tensor | None) -> None:
    """Write ``sides.delta``, and the gradient of the queries where it is wanted."""
    query, grad_out = sides.query, sides.grad_out
    written = grad_out if grad_query is None else triton_plan.rows_for(grad_query)
    programs = _programs(plan, tile, query, 1)
    triton_plan.kernels().oc_attention_few_bwd_query_kernel[(query.shape[0] * programs,)](
        x_key=plan.window(sides.key, tile.keys0, plan.wide_e),
        x_value=plan.window(sides.value, tile.keys0, plan.wide_ev),
        x_grad_out=plan.window(grad_out, tile.rows, plan.wide_ev),
        p_lse=sides.lse,
        p_delta=sides.delta,
        p_grad_query=written,
        WANTED=grad_query is not None,
        BS=tile.keys0,
        BV=plan.wide_ev,
        PROGRAMS=programs,
        **_triton.strides("g", "nl", grad_out),
        **_triton.strides("o", "nl", written),
        **_common(plan, tile, query, sides.key, sides.value, sides.scale),
    )
    if grad_query is not None:
        triton_plan.deliver(written, grad_query)


def _programs(plan: Plan, tile: configs.Few, query: Tensor, pieces: int) -> int:
    """Return the programs that share the query tiles of one image, where ``pieces`` run per tile."""
    n, tokens = query.shape[:2]
    slots = plan.multiprocessors // pieces
    return max(1, min(-(-tokens // tile.rows), slots // max(n, 1)))


def _common(
    plan: Plan, tile: configs.Few, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> dict[str, Any]:
    """Return the arguments that both kernels share."""
    return {
        "x_query": plan.window(query, tile.rows, plan.wide_e),
        **_triton.strides("q", "nl", query),
        **_triton.strides("k", "ns", key),
        **_triton.strides("v", "ns", value),
        "L": query.shape[1],
        "S": key.shape[1],
        **plan.few_common(tile, scale),
    }
