# SPDX-License-Identifier: MIT
"""Triton device code of pixel-wise attention, backward: one kernel for all row-stationary passes."""

import triton
import triton.language as tl

from ocnet.ops.oc_attention.triton_kernels.segments import (
    image_of_stage,
    of_stage,
    places,
    work_item,
)
from ocnet.ops.oc_attention.triton_kernels.tiles import (
    LOG2E,
    as_operand,
    dot,
    load_rows,
    load_strided,
    part_of,
    products,
    store_item,
    store_rows,
    store_strided,
)


@triton.jit
def oc_attention_bwd_delta_kernel(
    p_grad_out, p_out, p_residual, p_delta,
    stride_gn, stride_gl, stride_gv, stride_on, stride_ol, stride_ov,
    L, Ev,
    EVEN_V: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr,
    RESIDUAL: tl.constexpr, p_items=None,
):  # fmt: skip
    """``delta = sum_v grad_out * (out + residual)``, which the softmax takes off a row's score gradients.

    With ``p_items`` a program's tensors are those of its item's stage, and its rows are of the whole map.
    """
    if p_items is not None:
        i_stage, i_n, i_m, _, L, _ = work_item(p_items, 1)
        p_grad_out, stride_gn = of_stage(p_grad_out, i_stage), of_stage(stride_gn, i_stage)
        p_out, stride_on = of_stage(p_out, i_stage), of_stage(stride_on, i_stage)
        stride_gl, stride_gv = of_stage(stride_gl, i_stage), of_stage(stride_gv, i_stage)
        stride_ol, stride_ov = of_stage(stride_ol, i_stage), of_stage(stride_ov, i_stage)
        p_residual, p_delta = of_stage(p_residual, i_stage), of_stage(p_delta, i_stage)
    else:
        n_tiles = tl.cdiv(L, BM)
        i_n = tl.program_id(0) // n_tiles
        i_m = (tl.program_id(0) % n_tiles) * BM
    i_n = i_n.to(tl.int64)
    p_grad_out += i_n * stride_gn
    p_out += i_n * stride_on
    p_residual += i_n * stride_on
    o_m = i_m + tl.arange(0, BM)
    b_delta = tl.zeros([BM], tl.float32)
    for i_v in range(NV):
        o_v = i_v * BV + tl.arange(0, BV)
        # BM x BV
        b_grad = load_strided(p_grad_out, o_m, stride_gl, L, o_v, stride_gv, Ev, EVEN_V)
        # BM x BV
        b_out = load_strided(p_out, o_m, stride_ol, L, o_v, stride_ov, Ev, EVEN_V)
        b_out = b_out.to(tl.float32)
        if RESIDUAL:
            # BM x BV
            b_rest = load_strided(p_residual, o_m, stride_ol, L, o_v, stride_ov, Ev, EVEN_V)
            b_out += b_rest.to(tl.float32)
        b_delta += tl.sum(b_grad.to(tl.float32) * b_out, 1)
    tl.store(p_delta + i_n * L + o_m, b_delta, mask=o_m < L)


@triton.jit
def oc_attention_bwd_kernel(
    x_row, x_col, x_col_out, x_value_row, x_value_col, x_grad_row, x_grad_col, x_grad_col_out,
    p_lse, p_delta, p_out, p_out_value,
    stride_rn, stride_rm, stride_cn, stride_cs, stride_vn, stride_vs, stride_gn, stride_gl,
    stride_oz, stride_on, stride_om, stride_wz, stride_wn, stride_wm,
    scale, ROWS, COLS,
    AS_QUERY: tl.constexpr, AS_KEY: tl.constexpr, AS_VALUE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
    BE: tl.constexpr, NE: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr,
    BO: tl.constexpr, BW: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
    HOPPER: tl.constexpr, SPLITS: tl.constexpr, p_items=None, PIECES: tl.constexpr = 1,
):  # fmt: skip
    """Gradients of the rows' features and values, in the roles that the rows play.

    ``AS_QUERY``: rows are queries, columns keys; the tile of score gradients is
    ``P * (grad_out_row value_col^T - delta_row)``. ``AS_KEY``: rows are keys, columns queries, and
    the tile is the transpose of that expression. With shared keys the rows play both roles, and one
    tile of scores, symmetric there, serves both. ``BO`` channels of the sum of score gradients times
    column features go to ``p_out``.

    ``AS_VALUE``: rows are keys, and ``BW`` channels of ``P^T grad_out`` go to ``p_out_value``.

    With more than one of ``SPLITS``, a program sees one part of the columns, and the results are that
    part's float32 sums.

    With ``p_items`` rows and columns are of one group, whose tensors are those of its stage, and
    ``PIECES`` programs share an item's channels.
    """
    if p_items is not None:
        i_stage, i_n, i_m, ROWS, n_rows, segment = work_item(p_items, PIECES)
        COLS, n_cols = ROWS, n_rows
        i_o, i_split = tl.program_id(0) % PIECES, tl.program_id(2)
        x_row = image_of_stage(x_row, stride_rn, i_stage, i_n)
        x_col = image_of_stage(x_col, stride_cn, i_stage, i_n)
        x_value_row = image_of_stage(x_value_row, stride_vn, i_stage, i_n)
        x_grad_row = image_of_stage(x_grad_row, stride_gn, i_stage, i_n)
        x_value_col, x_grad_col = x_value_row, x_grad_row
        x_col_out, x_grad_col_out = x_col, x_grad_row
        stride_rm, stride_cs = of_stage(stride_rm, i_stage), of_stage(stride_cs, i_stage)
        stride_vs, stride_gl = of_stage(stride_vs, i_stage), of_stage(stride_gl, i_stage)
        p_lse, p_delta = of_stage(p_lse, i_stage), of_stage(p_delta, i_stage)
    else:
        n_tiles = tl.cdiv(ROWS, BM)
        i_n = tl.program_id(0) // n_tiles
        i_m = (tl.program_id(0) % n_tiles) * BM
        n_rows, n_cols, segment = ROWS, COLS, None
        i_o, i_split = tl.program_id(1), tl.program_id(2)
    i_part, n_part = part_of(tl.cdiv(COLS, BN), i_split, SPLITS)
    o_m = i_m + tl.arange(0, BM)

    # BM x BE
    b_row = load_rows(x_row, i_n, stride_rn, i_m, stride_rm, ROWS, 0, BM, BE, TMA, segment)
    if AS_QUERY:
        o_row = i_n.to(tl.int64) * n_rows + places(o_m, segment)
        # BM
        b_lse_row = tl.load(p_lse + o_row, mask=o_m < ROWS, other=0.0) * LOG2E
        # BM
        b_delta_row = tl.load(p_delta + o_row, mask=o_m < ROWS, other=0.0)
        # BM x BV
        b_grad_row = load_rows(
            x_grad_row, i_n, stride_gn, i_m, stride_gl, ROWS, 0, BM, BV, TMA, segment
        )
        b_grad = tl.zeros([BM, BO], tl.float32)
    if AS_KEY:
        # BM x BV
        b_value_row = load_rows(
            x_value_row, i_n, stride_vn, i_m, stride_vs, ROWS, 0, BM, BV, TMA, segment
        )
        b_grad = tl.zeros([BM, BO], tl.float32)
    if AS_VALUE:
        b_grad_value = tl.zeros([BM, BW], tl.float32)
    p_lse += i_n.to(tl.int64) * n_cols
    p_delta += i_n.to(tl.int64) * n_cols
    for i_step in tl.range(n_part, disable_licm=HOPPER):
        i_c = (i_part + i_step) * BN
        o_n = i_c + tl.arange(0, BN)
        m_n = o_n < COLS
        o_col = places(o_n, segment)
        b_score, b_col = products(
            b_row, x_row, stride_rn, i_m, stride_rm, ROWS, x_col, stride_cn, i_c, stride_cs, COLS,
            i_n, BM, BN, BE, NE, PRECISION, TMA, segment,
        )  # fmt: skip
        b_score *= scale * LOG2E
        if AS_QUERY:
            b_grad_prob, _ = products(
                b_grad_row, x_grad_row, stride_gn, i_m, stride_gl, ROWS, x_value_col, stride_vn, i_c,
                stride_vs, COLS, i_n, BM, BN, BV, NV, PRECISION, TMA, segment,
            )  # fmt: skip
            b_prob = tl.exp2(b_score - b_lse_row[:, None])
            b_grad_score = b_prob * (b_grad_prob - b_delta_row[:, None])
        if AS_KEY or AS_VALUE:
            # BN
            b_lse = tl.load(p_lse + o_col, mask=m_n, other=0.0) * LOG2E
            b_prob = tl.exp2(b_score - b_lse[None, :])
        if AS_KEY:
            b_grad_prob, b_grad_col = products(
                b_value_row, x_value_row, stride_vn, i_m, stride_vs, ROWS, x_grad_col, stride_gn,
                i_c, stride_gl, COLS, i_n, BM, BN, BV, NV, PRECISION, TMA, segment,
            )  # fmt: skip
            # BN
            b_delta = tl.load(p_delta + o_col, mask=m_n, other=0.0)
            if AS_QUERY:
                b_grad_score += b_prob * (b_grad_prob - b_delta[None, :])
            else:
                b_grad_score = b_prob * (b_grad_prob - b_delta[None, :])
        if AS_VALUE:
            if (not AS_KEY) or NV > 1 or BW != BV:
                # BN x BW
                b_grad_col = load_rows(
                    x_grad_col_out, i_n, stride_gn, i_c, stride_gl, COLS, i_o * BW, BN, BW, TMA,
                    segment,
                )  # fmt: skip
            b_weight = as_operand(tl.where(m_n[None, :], b_prob, 0.0), b_grad_col, PRECISION)
            b_grad_value = dot(b_weight, b_grad_col, b_grad_value, PRECISION)
        if AS_QUERY or AS_KEY:
            b_grad_score = tl.where(m_n[None, :], b_grad_score, 0.0)
            if NE > 1 or BO != BE:
                # BN x BO
                b_col = load_rows(
                    x_col_out, i_n, stride_cn, i_c, stride_cs, COLS, i_o * BO, BN, BO, TMA, segment
                )
            b_weight = as_operand(b_grad_score, b_col, PRECISION)
            b_grad = dot(b_weight, b_col, b_grad, PRECISION)

    if p_items is not None:
        if AS_QUERY or AS_KEY:
            store_item(
                p_items, p_out, stride_on, stride_om, i_o * BO, b_grad * scale, BM, BO, PIECES
            )
        if AS_VALUE:
            store_item(
                p_items, p_out_value, stride_wn, stride_wm, i_o * BW, b_grad_value, BM, BW, PIECES
            )
    else:
        if AS_QUERY or AS_KEY:
            p_out += i_n.to(tl.int64) * stride_on + i_split.to(tl.int64) * stride_oz
            store_rows(p_out, o_m, stride_om, ROWS, i_o * BO, b_grad * scale, BO, segment)
        if AS_VALUE:
            p_out_value += i_n.to(tl.int64) * stride_wn + i_split.to(tl.int64) * stride_wz
            store_rows(p_out_value, o_m, stride_wm, ROWS, i_o * BW, b_grad_value, BW, segment)


@triton.jit
def oc_attention_bwd_combine_kernel(
    p_part, p_out, stride_pz, stride_pn, stride_pt, stride_on, stride_ot, stride_oc,
    tokens, channels, SPLITS,
    EVEN: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Add the parts of a gradient, the first part first."""
    n_tiles = tl.cdiv(tokens, BT)
    i_n = (tl.program_id(0) // n_tiles).to(tl.int64)
    o_t = (tl.program_id(0) % n_tiles) * BT + tl.arange(0, BT)
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)
    p_part += i_n * stride_pn
    b_grad = tl.zeros([BT, BC], tl.float32)
    for _ in range(SPLITS):
        # BT x BC
        b_grad += load_strided(p_part, o_t, stride_pt, tokens, o_c, 1, channels, EVEN)
        p_part += stride_pz
    p_out += i_n * stride_on
    store_strided(p_out, o_t, stride_ot, tokens, o_c, stride_oc, channels, EVEN, b_grad)
