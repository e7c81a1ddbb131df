# SPDX-License-Identifier: MIT
"""Triton device code of pixel-wise attention: a forward kernel and three backward kernels.

Every program keeps one tile of tokens ("rows") and lets the tokens of the other side ("columns")
pass by, so each result is written once, by one program, in one order: no atomics, bitwise
repeatable.

Names: ``i_`` program and loop indices, ``p_`` pointers, ``o_`` offsets, ``m_`` masks, ``b_``
blocks, sizes in capitals. A tile is ``BM`` rows by ``BN`` columns. Products over channels run in
``NE`` slices of ``BE`` query and key channels, or ``NV`` slices of ``BV`` value channels; one
program writes ``BO`` output channels. ``EVEN_E``, ``EVEN_V``: the channels fill their slices.

Inputs have their channels side by side (stride 1) except those of the delta kernel; outputs have
any strides. Scores are kept in units of log2, so that ``exp2`` needs no extra multiplication.
Padding is made harmless twice, because ``0 * inf`` is NaN: loads fill it with zero, and the
probabilities of columns past the end are set to zero.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _tile(
    p_base, o_token, stride_token, tokens, o_channel, stride_channel, channels, EVEN: tl.constexpr
):  # fmt: skip
    """Pointers of a tile of a token matrix, 64-bit, and the mask of what lies inside the matrix."""
    p_tile = (
        p_base
        + o_token.to(tl.int64)[:, None] * stride_token
        + o_channel.to(tl.int64)[None, :] * stride_channel
    )
    m_tile = (o_token < tokens)[:, None]
    if not EVEN:
        m_tile = m_tile & (o_channel < channels)[None, :]
    return p_tile, m_tile


@triton.jit
def _load(
    p_base, o_token, stride_token, tokens, o_channel, stride_channel, channels, EVEN: tl.constexpr
):  # fmt: skip
    """A tile of a token matrix, zero past its end."""
    p_tile, m_tile = _tile(
        p_base, o_token, stride_token, tokens, o_channel, stride_channel, channels, EVEN
    )
    return tl.load(p_tile, mask=m_tile, other=0.0)


@triton.jit
def _store(
    p_base, o_token, stride_token, tokens, o_channel, stride_channel, channels, EVEN: tl.constexpr,
    b_tile,
):  # fmt: skip
    """Write the part of a tile that lies inside a token matrix, rounded to its dtype."""
    p_tile, m_tile = _tile(
        p_base, o_token, stride_token, tokens, o_channel, stride_channel, channels, EVEN
    )
    tl.store(p_tile, b_tile.to(p_base.dtype.element_ty), mask=m_tile)


@triton.jit
def _products(
    b_row, p_row, o_m, stride_row, rows, p_col, o_n, stride_col, cols, channels,
    EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, NC: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Inner products of a row tile with a column tile, and the column tile's first slice.

    With one slice the kept ``b_row`` is all of the row tile. With more, both are read slice by
    slice: a row tile that wide has no room on chip.
    """
    # BN x BC
    b_first = _load(p_col, o_n, stride_col, cols, tl.arange(0, BC), 1, channels, EVEN)
    if NC == 1:
        b_products = tl.dot(b_row, tl.trans(b_first), input_precision=PRECISION)
    else:
        b_products = tl.zeros([BM, BN], tl.float32)
        for i_c in range(NC):
            o_c = i_c * BC + tl.arange(0, BC)
            # BM x BC
            b_slice = _load(p_row, o_m, stride_row, rows, o_c, 1, channels, EVEN)
            # BN x BC
            b_col = _load(p_col, o_n, stride_col, cols, o_c, 1, channels, EVEN)
            b_products = tl.dot(b_slice, tl.trans(b_col), b_products, input_precision=PRECISION)
    return b_products, b_first


@triton.jit
def oc_attention_fwd_kernel(
    p_query, p_key, p_value, p_out, p_lse, p_residual,
    stride_qn, stride_ql, stride_kn, stride_ks, stride_vn, stride_vs,
    stride_on, stride_ol, stride_ov,
    scale, L, S, E, Ev,
    EVEN_E: tl.constexpr, EVEN_V: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr, NE: tl.constexpr, BO: tl.constexpr,
    PRECISION: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """``out = softmax(scale * query key^T) value`` and its log-sum-exp, by the online softmax.

    With ``RESIDUAL`` also what rounding takes from ``out``, laid out as ``out`` is.
    """
    n_tiles = tl.cdiv(L, BM)
    i_n = (tl.program_id(0) // n_tiles).to(tl.int64)
    i_o = tl.program_id(1)
    p_query += i_n * stride_qn
    p_key += i_n * stride_kn
    p_value += i_n * stride_vn
    p_out += i_n * stride_on
    o_m = (tl.program_id(0) % n_tiles) * BM + tl.arange(0, BM)
    o_o = i_o * BO + tl.arange(0, BO)

    # BM x BE
    b_query = _load(p_query, o_m, stride_ql, L, tl.arange(0, BE), 1, E, EVEN_E)
    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    b_out = tl.zeros([BM, BO], tl.float32)
    for i_s in range(0, S, BN):
        o_n = i_s + tl.arange(0, BN)
        b_score, _ = _products(
            b_query, p_query, o_m, stride_ql, L, p_key, o_n, stride_ks, S, E,
            EVEN_E, BM, BN, BE, NE, PRECISION,
        )  # fmt: skip
        b_score = tl.where((o_n < S)[None, :], b_score * (scale * LOG2E), float("-inf"))
        b_max_new = tl.maximum(b_max, tl.max(b_score, 1))
        # A row that has seen only -inf so far subtracts 0: -inf - -inf would be NaN for good.
        b_shift = tl.where(b_max_new == float("-inf"), 0.0, b_max_new)
        b_prob = tl.exp2(b_score - b_shift[:, None])
        b_decay = tl.exp2(b_max - b_shift)
        b_sum = b_sum * b_decay + tl.sum(b_prob, 1)
        # BN x BO
        b_value = _load(p_value, o_n, stride_vs, S, o_o, 1, Ev, EVEN_V)
        b_out = b_out * b_decay[:, None]
        b_out = tl.dot(b_prob.to(b_value.dtype), b_value, b_out, input_precision=PRECISION)
        b_max = b_max_new

    if i_o == 0:
        tl.store(p_lse + i_n * L + o_m, (b_max + tl.log2(b_sum)) * LN2, mask=o_m < L)
    b_out = b_out / b_sum[:, None]
    b_rounded = b_out.to(p_out.dtype.element_ty)
    if RESIDUAL:
        p_residual += i_n * stride_on
        b_rest = (b_out - b_rounded.to(tl.float32)).to(p_out.dtype.element_ty)
        _store(p_residual, o_m, stride_ol, L, o_o, stride_ov, Ev, EVEN_V, b_rest)
    _store(p_out, o_m, stride_ol, L, o_o, stride_ov, Ev, EVEN_V, b_rounded)


@triton.jit
def oc_attention_bwd_delta_kernel(
    p_grad_out, p_out, p_residual, p_delta,
    stride_gn, stride_gl, stride_gv, stride_on, stride_ol, stride_ov,
    L, Ev,
    EVEN_V: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr, NV: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    """``delta = sum_v grad_out * (out + residual)``, which the softmax takes off a row's score gradients."""
    n_tiles = tl.cdiv(L, BM)
    i_n = (tl.program_id(0) // n_tiles).to(tl.int64)
    p_grad_out += i_n * stride_gn
    p_out += i_n * stride_on
    p_residual += i_n * stride_on
    o_m = (tl.program_id(0) % n_tiles) * BM + tl.arange(0, BM)
    b_delta = tl.zeros([BM], tl.float32)
    for i_v in range(NV):
        o_v = i_v * BV + tl.arange(0, BV)
        # BM x BV
        b_grad = _load(p_grad_out, o_m, stride_gl, L, o_v, stride_gv, Ev, EVEN_V)
        # BM x BV
        b_out = _load(p_out, o_m, stride_ol, L, o_v, stride_ov, Ev, EVEN_V)
        b_out = b_out.to(tl.float32)
        if RESIDUAL:
            # BM x BV
            b_rest = _load(p_residual, o_m, stride_ol, L, o_v, stride_ov, Ev, EVEN_V)
            b_out += b_rest.to(tl.float32)
        b_delta += tl.sum(b_grad.to(tl.float32) * b_out, 1)
    tl.store(p_delta + i_n * L + o_m, b_delta, mask=o_m < L)


@triton.jit
def oc_attention_bwd_value_kernel(
    p_query, p_key, p_grad_out, p_lse, p_grad_value,
    stride_qn, stride_ql, stride_kn, stride_ks, stride_gn, stride_gl,
    stride_vn, stride_vs, stride_vv,
    scale, L, S, E, Ev,
    EVEN_E: tl.constexpr, EVEN_V: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr, NE: tl.constexpr, BO: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``grad_value = P^T grad_out``: rows are keys, columns are queries."""
    n_tiles = tl.cdiv(S, BM)
    i_n = (tl.program_id(0) // n_tiles).to(tl.int64)
    p_query += i_n * stride_qn
    p_key += i_n * stride_kn
    p_grad_out += i_n * stride_gn
    p_grad_value += i_n * stride_vn
    p_lse += i_n * L
    o_m = (tl.program_id(0) % n_tiles) * BM + tl.arange(0, BM)
    o_o = tl.program_id(1) * BO + tl.arange(0, BO)

    # BM x BE
    b_key = _load(p_key, o_m, stride_ks, S, tl.arange(0, BE), 1, E, EVEN_E)
    b_grad_value = tl.zeros([BM, BO], tl.float32)
    for i_l in range(0, L, BN):
        o_n = i_l + tl.arange(0, BN)
        b_score, _ = _products(
            b_key, p_key, o_m, stride_ks, S, p_query, o_n, stride_ql, L, E,
            EVEN_E, BM, BN, BE, NE, PRECISION,
        )  # fmt: skip
        # BN
        b_lse = tl.load(p_lse + o_n, mask=o_n < L, other=0.0) * LOG2E
        b_prob = tl.exp2(b_score * (scale * LOG2E) - b_lse[None, :])
        b_prob = tl.where((o_n < L)[None, :], b_prob, 0.0)
        # BN x BO
        b_grad = _load(p_grad_out, o_n, stride_gl, L, o_o, 1, Ev, EVEN_V)
        b_grad_value = tl.dot(
            b_prob.to(b_grad.dtype), b_grad, b_grad_value, input_precision=PRECISION
        )
    _store(p_grad_value, o_m, stride_vs, S, o_o, stride_vv, Ev, EVEN_V, b_grad_value)


@triton.jit
def oc_attention_bwd_feature_kernel(
    p_row, p_col, p_value, p_grad_out, p_lse, p_delta, p_grad_row,
    stride_rn, stride_rm, stride_cn, stride_cs, stride_vn, stride_vs, stride_gn, stride_gl,
    stride_on, stride_om, stride_oe,
    scale, ROWS, COLS, E, Ev,
    AS_QUERY: tl.constexpr, AS_KEY: tl.constexpr, EVEN_E: tl.constexpr, EVEN_V: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr, NE: tl.constexpr,
    BV: tl.constexpr, NV: tl.constexpr, BO: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of the rows' query or key features, in the roles that the rows play.

    ``AS_QUERY``: rows are queries, columns keys; the tile of score gradients is
    ``P * (grad_out_row value_col^T - delta_row)``. ``AS_KEY``: rows are keys, columns queries, and
    the tile is the transpose of that expression. With shared keys the rows play both roles, and one
    tile of scores, symmetric there, serves both.
    """
    n_tiles = tl.cdiv(ROWS, BM)
    i_n = (tl.program_id(0) // n_tiles).to(tl.int64)
    p_row += i_n * stride_rn
    p_col += i_n * stride_cn
    p_value += i_n * stride_vn
    p_grad_out += i_n * stride_gn
    p_grad_row += i_n * stride_on
    o_m = (tl.program_id(0) % n_tiles) * BM + tl.arange(0, BM)
    o_v = tl.arange(0, BV)
    o_o = tl.program_id(1) * BO + tl.arange(0, BO)

    # BM x BE
    b_row = _load(p_row, o_m, stride_rm, ROWS, tl.arange(0, BE), 1, E, EVEN_E)
    if AS_QUERY:
        p_lse += i_n * ROWS
        p_delta += i_n * ROWS
        # BM
        b_lse_row = tl.load(p_lse + o_m, mask=o_m < ROWS, other=0.0) * LOG2E
        # BM
        b_delta_row = tl.load(p_delta + o_m, mask=o_m < ROWS, other=0.0)
        # BM x BV
        b_grad_row = _load(p_grad_out, o_m, stride_gl, ROWS, o_v, 1, Ev, EVEN_V)
    else:
        p_lse += i_n * COLS
        p_delta += i_n * COLS
    if AS_KEY:
        # BM x BV
        b_value_row = _load(p_value, o_m, stride_vs, ROWS, o_v, 1, Ev, EVEN_V)
    b_grad = tl.zeros([BM, BO], tl.float32)
    for i_c in range(0, COLS, BN):
        o_n = i_c + tl.arange(0, BN)
        b_score, b_col = _products(
            b_row, p_row, o_m, stride_rm, ROWS, p_col, o_n, stride_cs, COLS, E,
            EVEN_E, BM, BN, BE, NE, PRECISION,
        )  # fmt: skip
        b_score *= scale * LOG2E
        b_grad_score = tl.zeros([BM, BN], tl.float32)
        if AS_QUERY:
            b_grad_prob, _ = _products(
                b_grad_row, p_grad_out, o_m, stride_gl, ROWS, p_value, o_n, stride_vs, COLS, Ev,
                EVEN_V, BM, BN, BV, NV, PRECISION,
            )  # fmt: skip
            b_prob = tl.exp2(b_score - b_lse_row[:, None])
            b_grad_score += b_prob * (b_grad_prob - b_delta_row[:, None])
        if AS_KEY:
            b_grad_prob, _ = _products(
                b_value_row, p_value, o_m, stride_vs, ROWS, p_grad_out, o_n, stride_gl, COLS, Ev,
                EVEN_V, BM, BN, BV, NV, PRECISION,
            )  # fmt: skip
            # BN
            b_lse = tl.load(p_lse + o_n, mask=o_n < COLS, other=0.0) * LOG2E
            # BN
            b_delta = tl.load(p_delta + o_n, mask=o_n < COLS, other=0.0)
            b_prob = tl.exp2(b_score - b_lse[None, :])
            b_grad_score += b_prob * (b_grad_prob - b_delta[None, :])
        b_grad_score = tl.where((o_n < COLS)[None, :], b_grad_score, 0.0)
        if NE > 1 or BO != BE:
            # BN x BO
            b_col = _load(p_col, o_n, stride_cs, COLS, o_o, 1, E, EVEN_E)
        b_grad = tl.dot(b_grad_score.to(b_col.dtype), b_col, b_grad, input_precision=PRECISION)
    _store(p_grad_row, o_m, stride_om, ROWS, o_o, stride_oe, E, EVEN_E, b_grad * scale)
