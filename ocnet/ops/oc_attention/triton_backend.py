# SPDX-License-Identifier: MIT
"""Triton back end: NVIDIA GPUs of compute capability 8.0 and later, forward and backward.

Triton is imported by the first call that needs it, so this module imports without it. The kernels
read maps whose channels lie side by side in rows of whole 16 bytes; a map that is laid out otherwise
(NCHW, an odd number of channels) is copied first, and so is one that is rounded to TF32.
"""

import torch
from torch import Tensor

from ocnet.ops import _triton
from ocnet.ops._backends import Support
from ocnet.ops.oc_attention import configs, triton_few, triton_plan
from ocnet.ops.oc_attention.problem import (
    BackwardCall,
    ForwardCall,
    Problem,
    refuse_common,
)
from ocnet.ops.oc_attention.triton_plan import Plan, Sides


def supports(problem: Problem) -> Support:
    """Tell whether the Triton kernels take the call."""
    return _triton.supports(problem, refuse_common, triton_plan.kernels)


def forward(call: ForwardCall) -> None:
    """Write the outputs of the call."""
    with _triton.on(call.query.device):
        plan = Plan.of(call.query, call.value, call.tf32)
        read = call._replace(
            query=plan.rows(call.query),
            key=None if call.key is None else plan.rows(call.key),
            value=plan.rows(call.value),
        )
        few = plan.few("few", call.value.shape[1])
        if few is None:
            _forward(plan, read)
        else:
            triton_few.forward(plan, few, read)


def _forward(plan: Plan, call: ForwardCall) -> None:
    query, key, value, scale, _, out, lse, residual = call
    diagonal, key = key is None, query if key is None else key
    tile = plan.tile("forward")
    grid = triton_plan.grid(out, tile.rows, tile.out)
    splits = configs.splits(grid, -(-key.shape[1] // tile.cols), plan.multiprocessors)
    part_max, part_sum, rest = lse, lse, None
    if splits > 1:
        part = triton_plan.parts_for(out, splits)
        part_max, part_sum = lse.new_empty((2, splits, *lse.shape))
    else:
        part = triton_plan.rows_for(out)
        rest = None if residual is None else triton_plan.rows_for(residual)
    written = part if splits > 1 else part[None]
    triton_plan.kernels().oc_attention_fwd_kernel[(grid[0], grid[1], splits)](
        x_query=plan.window(query, tile.rows, tile.slice_e),
        x_key=plan.window(key, tile.cols, tile.slice_e),
        x_value=plan.window(value, tile.cols, tile.out),
        p_out=part,
        p_lse=part_sum,
        p_residual=part if rest is None else rest,
        p_max=part_max,
        RESIDUAL=rest is not None,
        DIAGONAL=diagonal,
        SPLITS=splits,
        BO=tile.out,
        **_triton.strides("q", "nl", query),
        **_triton.strides("k", "ns", key),
        **_triton.strides("v", "ns", value),
        **_triton.strides("o", "znl", written),
        scale=scale,
        N=query.shape[0],
        L=query.shape[1],
        S=key.shape[1],
        **plan.common(tile),
    )
    if splits > 1:
        _combine_forward(part, part_max, part_sum, out, lse, residual)
        return
    triton_plan.deliver(part, out)
    if residual is not None and rest is not None:
        triton_plan.deliver(rest, residual)


def _combine_forward(
    part: Tensor,
    part_max: Tensor,
    part_sum: Tensor,
    out: Tensor,
    lse: Tensor,
    residual: Tensor | None,
) -> None:
    n, l, ev = out.shape
    tile = configs.COMBINE
    triton_plan.kernels().oc_attention_fwd_combine_kernel[
        triton_plan.grid(out, tile.rows, tile.channels(ev))
    ](
        p_part=part,
        p_max=part_max,
        p_sum=part_sum,
        p_out=out,
        p_lse=lse,
        p_residual=out if residual is None else residual,
        **_triton.strides("p", "znl", part),
        **_triton.strides("o", "nlv", out),
        N=n,
        L=l,
        Ev=ev,
        SPLITS=part.shape[0],
        EVEN_V=ev % tile.channels(ev) == 0,
        BM=tile.rows,
        BV=tile.channels(ev),
        RESIDUAL=residual is not None,
        enable_fp_fusion=True,
    )


def backward(call: BackwardCall) -> None:
    """Write the gradients that are not ``None``."""
    query, key, value, wanted = call.query, call.key, call.value, call.grad_query
    with _triton.on(query.device):
        plan = Plan.of(query, value, call.tf32)
        rows = plan.rows(query)
        sides = Sides(
            grad_out=plan.rows(call.grad_out),
            query=rows,
            key=rows if key is None else plan.rows(key),
            value=plan.rows(value),
            lse=call.lse,
            delta=torch.empty_like(call.lse),
            scale=call.scale,
        )
        few = None if key is None else plan.few("few_query", value.shape[1])
        if wanted is not None or call.grad_key is not None:
            if few is None:
                _backward_delta(call.grad_out, call.out, call.residual, sides.delta)
            else:
                triton_few.backward_query(plan, few, sides, wanted)
        if key is None:
            _backward_keys(plan, "both", sides, wanted, call.grad_value)
            return
        if few is None:
            _backward_pass(plan, "query", sides, wanted, None)
        _backward_keys(plan, "key", sides, call.grad_key, call.grad_value)


def _backward_keys(
    plan: Plan,
    kernel: configs.Kernel,
    sides: Sides,
    grad_feature: Tensor | None,
    grad_value: Tensor | None,
) -> None:
    """Write the gradients of the keys' features and values, in one pass where a tile holds both."""
    if plan.tile(kernel).out_v > 0:
        _backward_pass(plan, kernel, sides, grad_feature, grad_value)
        return
    _backward_pass(plan, kernel, sides, grad_feature, None)
    _backward_pass(plan, "value", sides, None, grad_value)


def _backward_delta(grad_out: Tensor, out: Tensor, residual: Tensor | None, delta: Tensor) -> None:
    n, l, ev = out.shape
    triton_plan.kernels().oc_attention_bwd_delta_kernel[(n * -(-l // configs.DELTA.rows),)](
        p_grad_out=grad_out,
        p_out=out,
        p_residual=out if residual is None else residual,
        RESIDUAL=residual is not None,
        p_delta=delta,
        **_triton.strides("g", "nlv", grad_out),
        **_triton.strides("o", "nlv", out),
        L=l,
        **triton_plan.delta_common(ev),
    )


def _backward_pass(
    plan: Plan,
    kernel: configs.Kernel,
    sides: Sides,
    grad_feature: Tensor | None,
    grad_value: Tensor | None,
) -> None:
    """Launch one row-stationary pass, whose rows are queries, keys, or both.

    The tile depends on the kernel alone: a gradient has the same bits whether or not the pass writes
    another one too.
    """
    if grad_feature is None and grad_value is None:
        return
    tile = plan.tile(kernel)
    as_query = grad_feature is not None and kernel in ("query", "both")
    as_key = grad_feature is not None and kernel in ("key", "both")
    row, col = (sides.query, sides.key) if kernel == "query" else (sides.key, sides.query)
    as_value = grad_value is not None
    out_v = tile.out if kernel == "value" else tile.out_v
    written = [grad for grad in (grad_feature, grad_value) if grad is not None]
    grid = triton_plan.grid(written[0], tile.rows, out_v if grad_feature is None else tile.out)
    splits = configs.splits(grid, -(-col.shape[1] // tile.cols), plan.multiprocessors)
    rows = [
        triton_plan.parts_for(grad, splits) if splits > 1 else triton_plan.rows_for(grad)
        for grad in written
    ]
    first, last = (part if splits > 1 else part[None] for part in (rows[0], rows[-1]))
    value, grad_out = sides.value, sides.grad_out
    triton_plan.kernels().oc_attention_bwd_kernel[(grid[0], grid[1], splits)](
        x_row=plan.window(row, tile.rows, tile.slice_e),
        x_col=plan.window(col, tile.cols, tile.slice_e),
        x_col_out=plan.window(col, tile.cols, tile.out, as_query or as_key),
        x_value_row=plan.window(value, tile.rows, tile.slice_v, as_key),
        x_value_col=plan.window(value, tile.cols, tile.slice_v, as_query),
        x_grad_row=plan.window(grad_out, tile.rows, tile.slice_v, as_query),
        x_grad_col=plan.window(grad_out, tile.cols, tile.slice_v, as_key),
        x_grad_col_out=plan.window(grad_out, tile.cols, out_v, as_value),
        p_lse=sides.lse,
        p_delta=sides.delta,
        p_out=first,
        p_out_value=last,
        **_triton.strides("r", "nm", row),
        **_triton.strides("c", "ns", col),
        **_triton.strides("v", "ns", value),
        **_triton.strides("g", "nl", grad_out),
        **_triton.strides("o", "znm", first),
        **_triton.strides("w", "znm", last),
        scale=sides.scale,
        ROWS=row.shape[1],
        COLS=col.shape[1],
        AS_QUERY=as_query,
        AS_KEY=as_key,
        AS_VALUE=as_value,
        BV=tile.slice_v,
        NV=plan.wide_ev // tile.slice_v,
        BO=tile.out,
        BW=out_v,
        SPLITS=splits,
        **plan.common(tile),
    )
    for part, grad in zip(rows, written, strict=True):
        (_combine_backward if splits > 1 else triton_plan.deliver)(part, grad)


def _combine_backward(part: Tensor, grad: Tensor) -> None:
    _, tokens, channels = grad.shape
    tile = configs.COMBINE
    triton_plan.kernels().oc_attention_bwd_combine_kernel[
        triton_plan.grid(grad, tile.rows, tile.channels(channels))
    ](
        p_part=part,
        p_out=grad,
        **_triton.strides("p", "znt", part),
        **_triton.strides("o", "ntc", grad),
        tokens=tokens,
        channels=channels,
        SPLITS=part.shape[0],
        EVEN=channels % tile.channels(channels) == 0,
        BT=tile.rows,
        BC=tile.channels(channels),
        enable_fp_fusion=True,
    )
