# SPDX-License-Identifier: MIT
"""Triton device code of spatial gathering: sums of parts and their combination, and the gradients.

Every result is written once, by one program, in one order: no atomics, bitwise repeatable.

Names: ``i_`` program and loop indices, ``p_`` pointers, ``o_`` offsets, ``m_`` masks, ``b_``
blocks, sizes in capitals. A tile is ``BL`` positions, ``BK`` regions, ``BC`` channels. Matrices have
any strides. Programs that read the same positions are neighbours in the grid, so that the second
finds them in the cache.

Scores are kept in units of log2, so that ``exp2`` needs no extra multiplication. Padding is made
harmless twice, because ``0 * inf`` is NaN: loads fill it with zero, and its weights are set to zero.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Weights over many positions are small numbers; fp16 keeps their digits when they are multiplied
# as this many times what they are.
LARGE = tl.constexpr(32768.0)


@triton.jit
def _tile(p_base, o_row, stride_row, rows, o_col, stride_col, cols):
    """Pointers of a tile of a matrix, 64-bit, and the mask of what lies inside the matrix."""
    p_tile = (
        p_base + o_row.to(tl.int64)[:, None] * stride_row + o_col.to(tl.int64)[None, :] * stride_col
    )
    return p_tile, (o_row < rows)[:, None] & (o_col < cols)[None, :]


@triton.jit
def _load(p_base, o_row, stride_row, rows, o_col, stride_col, cols):
    """A tile of a matrix, zero past its end."""
    p_tile, m_tile = _tile(p_base, o_row, stride_row, rows, o_col, stride_col, cols)
    return tl.load(p_tile, mask=m_tile, other=0.0)


@triton.jit
def _store(p_base, o_row, stride_row, rows, o_col, stride_col, cols, b_tile):
    """Write the part of a tile that lies inside a matrix, rounded to its dtype."""
    p_tile, m_tile = _tile(p_base, o_row, stride_row, rows, o_col, stride_col, cols)
    tl.store(p_tile, b_tile.to(p_base.dtype.element_ty), mask=m_tile)


@triton.jit
def _operand(b_tile, PRECISION: tl.constexpr):
    """A tile as products take it: float32 rounded to the nearest TF32, which tensor cores truncate."""
    if PRECISION == "tf32":
        b_bits = b_tile.to(tl.int32, bitcast=True)
        b_finite = (b_bits & 0x7F800000) != 0x7F800000
        b_rounded = ((b_bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        b_tile = tl.where(b_finite, b_rounded, b_tile)
    return b_tile


@triton.jit
def spatial_gather_fwd_kernel(
    p_features, p_logits, p_sums, p_maxima, p_totals,
    stride_fn, stride_fl, stride_fc, stride_zn, stride_zl, stride_zk,
    scale, L, C, K, PARTS, PART,
    BL: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Weighted sums of one part of the positions, by the online softmax.

    The weights are relative to the maximum of the part, which is written in units of log2.
    """
    n_k, n_c = tl.cdiv(K, BK), tl.cdiv(C, BC)
    i_slice, i_place = tl.program_id(0) % (n_k * n_c), tl.program_id(0) // (n_k * n_c)
    i_k, i_c = i_slice // n_c, i_slice % n_c
    i_n, i_part = (i_place // PARTS).to(tl.int64), i_place % PARTS
    p_features += i_n * stride_fn
    p_logits += i_n * stride_zn
    o_k = i_k * BK + tl.arange(0, BK)
    o_c = i_c * BC + tl.arange(0, BC)

    b_max = tl.full([BK], float("-inf"), tl.float32)
    b_sum = tl.zeros([BK], tl.float32)
    b_out = tl.zeros([BK, BC], tl.float32)
    end = tl.minimum(L, (i_part + 1) * PART)
    for i_l in range(i_part * PART, end, BL):
        o_l = i_l + tl.arange(0, BL)
        # BK x BL
        b_score = _load(p_logits, o_k, stride_zk, K, o_l, stride_zl, end).to(tl.float32)
        b_score = tl.where((o_l < end)[None, :], b_score * (scale * LOG2E), float("-inf"))
        b_max_new = tl.maximum(b_max, tl.max(b_score, 1))
        # A region that has seen only -inf so far subtracts 0: -inf - -inf would be NaN for good.
        b_shift = tl.where(b_max_new == float("-inf"), 0.0, b_max_new)
        b_prob = tl.exp2(b_score - b_shift[:, None])
        b_decay = tl.exp2(b_max - b_shift)
        b_sum = b_sum * b_decay + tl.sum(b_prob, 1)
        # BL x BC
        b_feature = _load(p_features, o_l, stride_fl, end, o_c, stride_fc, C)
        b_feature = _operand(b_feature, PRECISION)
        b_weight = _operand(b_prob.to(b_feature.dtype), PRECISION)
        b_out = b_out * b_decay[:, None]
        b_out = tl.dot(b_weight, b_feature, b_out, input_precision=PRECISION)
        b_max = b_max_new
    row = i_place.to(tl.int64) * K
    _store(p_sums + row * C, o_k, C, K, o_c, 1, C, b_out)
    if i_c == 0:
        tl.store(p_maxima + row + o_k, b_max, mask=o_k < K)
        tl.store(p_totals + row + o_k, b_sum, mask=o_k < K)


@triton.jit
def spatial_gather_combine_kernel(
    p_sums, p_maxima, p_totals, p_out, p_lse, p_residual,
    stride_on, stride_ok, stride_oc,
    C, K, PARTS,
    MOST_PARTS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """One region: its parts are added up in their order.

    With ``RESIDUAL`` also what rounding takes from the sum, laid out as the result is.
    """
    n_c = tl.cdiv(C, BC)
    i_row, i_c = tl.program_id(0) // n_c, tl.program_id(0) % n_c
    i_n, i_k = (i_row // K).to(tl.int64), (i_row % K).to(tl.int64)
    o_c = i_c * BC + tl.arange(0, BC)
    first = i_n * PARTS * K + i_k
    o_all = tl.arange(0, MOST_PARTS)
    b_all = tl.load(p_maxima + first + o_all * K, mask=o_all < PARTS, other=float("-inf"))
    top = tl.max(b_all, 0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    b_out = tl.zeros([BC], tl.float32)
    total = 0.0
    for i_p in range(0, PARTS, BP):
        o_p = i_p + tl.arange(0, BP)
        m_p = o_p < PARTS
        # BP
        b_max = tl.load(p_maxima + first + o_p * K, mask=m_p, other=float("-inf"))
        b_factor = tl.where(m_p, tl.exp2(b_max - shift), 0.0)
        b_total = tl.load(p_totals + first + o_p * K, mask=m_p, other=0.0)
        total += tl.sum(b_factor * b_total, 0)
        # BP x BC
        b_part = _load(p_sums + first * C, o_p, K * C, PARTS, o_c, 1, C)
        b_out += tl.sum(b_factor[:, None] * b_part, 0)
    b_out = b_out / total
    p_target = p_out + i_n * stride_on + i_k * stride_ok + o_c.to(tl.int64) * stride_oc
    b_rounded = b_out.to(p_out.dtype.element_ty)
    tl.store(p_target, b_rounded, mask=o_c < C)
    if RESIDUAL:
        p_rest = p_residual + i_n * stride_on + i_k * stride_ok + o_c.to(tl.int64) * stride_oc
        b_kept = b_rounded.to(tl.float32)
        # Of an infinity nothing is left: the difference would be NaN.
        b_rest = tl.where((b_kept - b_kept) == 0.0, b_out - b_kept, 0.0)
        tl.store(p_rest, b_rest.to(p_out.dtype.element_ty), mask=o_c < C)
    if i_c == 0:
        # A score of +inf makes the total NaN, and so the logarithm.
        tl.store(p_lse + i_n * K + i_k, (top + tl.log2(total)) * LN2)


@triton.jit
def spatial_gather_delta_kernel(
    p_grad_out, p_out, p_residual, p_delta,
    stride_gn, stride_gk, stride_gc, stride_on, stride_ok, stride_oc,
    K, C,
    BK: tl.constexpr, BC: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``delta = sum_c grad_out * (out + residual)`` of each region.

    It is a mean of the very products it is taken from: of rounded gradients where those are.
    """
    n_k = tl.cdiv(K, BK)
    i_n = (tl.program_id(0) // n_k).to(tl.int64)
    p_grad_out += i_n * stride_gn
    p_out += i_n * stride_on
    p_residual += i_n * stride_on
    o_k = (tl.program_id(0) % n_k) * BK + tl.arange(0, BK)
    b_delta = tl.zeros([BK], tl.float32)
    for i_c in range(0, C, BC):
        o_c = i_c + tl.arange(0, BC)
        # BK x BC
        b_grad = _load(p_grad_out, o_k, stride_gk, K, o_c, stride_gc, C).to(tl.float32)
        # BK x BC
        b_out = _load(p_out, o_k, stride_ok, K, o_c, stride_oc, C).to(tl.float32)
        if RESIDUAL:
            # BK x BC
            b_out += _load(p_residual, o_k, stride_ok, K, o_c, stride_oc, C).to(tl.float32)
        # The difference is NaN for an infinite gradient, as the plain formula is, and else 0.
        b_delta += tl.sum(_operand(b_grad, PRECISION) * b_out + (b_grad - b_grad), 1)
    tl.store(p_delta + i_n * K + o_k, b_delta, mask=o_k < K)


@triton.jit
def _weights(
    p_logits, stride_zl, stride_zk, p_lse, scale, o_l, L, o_k, K
):  # fmt: skip
    """The weights of a tile, BL x BK; none past the ends."""
    b_logit = _load(p_logits, o_l, stride_zl, L, o_k, stride_zk, K).to(tl.float32)
    # BK
    b_lse = tl.load(p_lse + o_k, mask=o_k < K, other=0.0) * LOG2E
    b_prob = tl.exp2(b_logit * (scale * LOG2E) - b_lse[None, :])
    return tl.where((o_l < L)[:, None] & (o_k < K)[None, :], b_prob, 0.0)


@triton.jit
def spatial_gather_bwd_logits_kernel(
    p_grad_out, p_features, p_logits, p_lse, p_delta, p_grad_logits,
    stride_gn, stride_gk, stride_gc, stride_fn, stride_fl, stride_fc,
    stride_zn, stride_zl, stride_zk, stride_on, stride_ol, stride_ok,
    scale, L, C, K,
    BL: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``grad_logits = scale * P * (features grad_out^T - delta)``: reads the features once."""
    n_l, n_k = tl.cdiv(L, BL), tl.cdiv(K, BK)
    i_k, i_place = tl.program_id(0) % n_k, tl.program_id(0) // n_k
    i_n = (i_place // n_l).to(tl.int64)
    p_grad_out += i_n * stride_gn
    p_features += i_n * stride_fn
    o_l = (i_place % n_l) * BL + tl.arange(0, BL)
    o_k = i_k * BK + tl.arange(0, BK)
    b_product = tl.zeros([BL, BK], tl.float32)
    for i_c in range(0, C, BC):
        o_c = i_c + tl.arange(0, BC)
        # BL x BC
        b_feature = _load(p_features, o_l, stride_fl, L, o_c, stride_fc, C)
        # BC x BK
        b_grad = _load(p_grad_out, o_c, stride_gc, C, o_k, stride_gk, K)
        b_product = tl.dot(
            _operand(b_feature, PRECISION), _operand(b_grad, PRECISION), b_product,
            input_precision=PRECISION,
        )  # fmt: skip
    b_prob = _weights(
        p_logits + i_n * stride_zn, stride_zl, stride_zk, p_lse + i_n * K, scale, o_l, L, o_k, K
    )
    # BK
    b_delta = tl.load(p_delta + i_n * K + o_k, mask=o_k < K, other=0.0)
    b_grad_logits = scale * b_prob * (b_product - b_delta[None, :])
    _store(p_grad_logits + i_n * stride_on, o_l, stride_ol, L, o_k, stride_ok, K, b_grad_logits)


@triton.jit
def spatial_gather_bwd_features_kernel(
    p_grad_out, p_logits, p_lse, p_grad_features,
    stride_gn, stride_gk, stride_gc, stride_zn, stride_zl, stride_zk,
    stride_on, stride_ol, stride_oc,
    scale, L, C, K,
    BL: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``grad_features = P grad_out``: does not read the features."""
    n_l, n_c = tl.cdiv(L, BL), tl.cdiv(C, BC)
    i_c, i_place = tl.program_id(0) % n_c, tl.program_id(0) // n_c
    i_n = (i_place // n_l).to(tl.int64)
    p_grad_out += i_n * stride_gn
    p_logits += i_n * stride_zn
    p_lse += i_n * K
    o_l = (i_place % n_l) * BL + tl.arange(0, BL)
    o_c = i_c * BC + tl.arange(0, BC)
    b_out = tl.zeros([BL, BC], tl.float32)
    for i_k in range(0, K, BK):
        o_k = i_k + tl.arange(0, BK)
        b_prob = _weights(p_logits, stride_zl, stride_zk, p_lse, scale, o_l, L, o_k, K)
        # BK x BC
        b_grad = _load(p_grad_out, o_k, stride_gk, K, o_c, stride_gc, C)
        b_grad = _operand(b_grad, PRECISION)
        b_weight = _operand((b_prob * LARGE).to(b_grad.dtype), PRECISION)
        b_out = tl.dot(b_weight, b_grad, b_out, input_precision=PRECISION)
    b_out = b_out * (1.0 / LARGE)
    _store(p_grad_features + i_n * stride_on, o_l, stride_ol, L, o_c, stride_oc, C, b_out)
