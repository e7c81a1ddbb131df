# SPDX-License-Identifier: MIT
"""Triton device code of pixel-wise attention, forward: the online softmax, whole or in parts."""

import triton
import triton.language as tl

from ocnet.ops.oc_attention.triton_kernels.segments import image_of_stage, of_stage, work_item
from ocnet.ops.oc_attention.triton_kernels.tiles import (
    LN2,
    LOG2E,
    as_operand,
    dot,
    load_rows,
    load_strided,
    part_of,
    products,
    store_item,
    store_item_numbers,
    store_rows,
    store_strided,
)

# How far, in powers of two, a row's maximum may rise above the reference that its sums are kept
# against. 2 ** 8 times a probability of 1 fits float16, and a float32 sum of them has room.
SLACK = tl.constexpr(8.0)


@triton.jit
def store_out(
    p_out, p_residual, o_m, stride_ol, L, i_o, b_out, BO: tl.constexpr, RESIDUAL: tl.constexpr,
    segment,
):  # fmt: skip
    """Write a tile of the output, rounded, and with ``RESIDUAL`` what the rounding took from it."""
    b_rounded = b_out.to(p_out.dtype.element_ty)
    if RESIDUAL:
        b_rest = b_out - b_rounded.to(tl.float32)
        store_rows(p_residual, o_m, stride_ol, L, i_o, b_rest, BO, segment)
    store_rows(p_out, o_m, stride_ol, L, i_o, b_rounded, BO, segment)


@triton.jit
def store_item_out(
    p_items, p_out, p_residual, stride_on, stride_ol, i_o, b_out,
    BM: tl.constexpr, BO: tl.constexpr, PIECES: tl.constexpr, RESIDUAL: tl.constexpr, i_row=None,
):  # fmt: skip
    """The same for the rows of the program's work item."""
    b_rounded = b_out.to(p_out[0].dtype.element_ty)
    if RESIDUAL:
        b_rest = b_out - b_rounded.to(tl.float32)
        store_item(p_items, p_residual, stride_on, stride_ol, i_o, b_rest, BM, BO, PIECES, i_row)
    store_item(p_items, p_out, stride_on, stride_ol, i_o, b_rounded, BM, BO, PIECES, i_row)


@triton.jit
def oc_attention_fwd_kernel(
    x_query, x_key, x_value, p_out, p_lse, p_residual, p_max,
    stride_qn, stride_ql, stride_kn, stride_ks, stride_vn, stride_vs,
    stride_oz, stride_on, stride_ol,
    scale, N, L, S,
    BM: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr, NE: tl.constexpr, BO: tl.constexpr,
    PRECISION: tl.constexpr, TMA: tl.constexpr, HOPPER: tl.constexpr,
    DIAGONAL: tl.constexpr, SPLITS: tl.constexpr, RESIDUAL: tl.constexpr,
    p_items=None, PIECES: tl.constexpr = 1,
):  # fmt: skip
    """``out = softmax(scale * query key^T) value`` and its log-sum-exp, by the online softmax.

    With ``RESIDUAL`` also what rounding takes from ``out``, laid out as ``out`` is. One program
    computes ``BO`` output channels. With more than one of ``SPLITS``, a program sees one part of the
    keys and writes its unfinished row sums: weighted values to ``p_out``, weights to ``p_lse``, the
    references that both are kept against to ``p_max``.

    A row's sums are kept against a reference that follows its maximum only when that has risen by
    more than ``SLACK``; any reference gives the same quotient. With ``DIAGONAL`` the walk over the
    keys starts at the rows' own pixels, most similar to themselves, and wraps around.

    With ``p_items`` a program attends within a group, whose tensors are those of its stage, and
    ``PIECES`` programs share an item's output channels.
    """
    if p_items is not None:
        i_stage, i_n, i_m, L, _n_map, segment = work_item(p_items, PIECES)
        S = L
        i_o, i_split = tl.program_id(0) % PIECES * BO, tl.program_id(2)
        x_query = image_of_stage(x_query, stride_qn, i_stage, i_n)
        x_key = image_of_stage(x_key, stride_kn, i_stage, i_n)
        x_value = image_of_stage(x_value, stride_vn, i_stage, i_n)
        stride_ql, stride_ks = of_stage(stride_ql, i_stage), of_stage(stride_ks, i_stage)
        stride_vs = of_stage(stride_vs, i_stage)
    else:
        n_tiles = tl.cdiv(L, BM)
        i_n = tl.program_id(0) // n_tiles
        i_m = (tl.program_id(0) % n_tiles) * BM
        i_o, i_split = tl.program_id(1) * BO, tl.program_id(2)
        segment = None
    i_part, n_part = part_of(tl.cdiv(S, BN), i_split, SPLITS)
    i_start = 0
    if DIAGONAL:
        i_own = i_m // BN - i_part
        i_start = tl.where((i_own >= 0) & (i_own < n_part), i_own, 0)

    # BM x BE
    b_query = load_rows(x_query, i_n, stride_qn, i_m, stride_ql, L, 0, BM, BE, TMA, segment)
    b_ref = tl.full([BM], float("-inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    b_out = tl.zeros([BM, BO], tl.float32)
    for i_step in tl.range(n_part, disable_licm=HOPPER):
        i_tile = i_start + i_step
        i_tile = i_part + tl.where(i_tile >= n_part, i_tile - n_part, i_tile)
        i_s = i_tile * BN
        b_score, _ = products(
            b_query, x_query, stride_qn, i_m, stride_ql, L, x_key, stride_kn, i_s, stride_ks, S,
            i_n, BM, BN, BE, NE, PRECISION, TMA, segment,
        )  # fmt: skip
        b_score *= scale * LOG2E
        # One tile of the walk at most; the others need no comparison per number.
        if i_s + BN > S:
            b_score = tl.where((i_s + tl.arange(0, BN) < S)[None, :], b_score, float("-inf"))
        b_max = tl.max(b_score, 1)
        # Rare once a row has met its own pixel, so skipped for all rows at once. The branch costs two
        # barriers and saves a product with every number of the output, a fourth of the loop's
        # instructions at 64 x 256; it compiles without a spill and leaves the last product in flight.
        if tl.max((b_max > b_ref + SLACK).to(tl.int32), 0) > 0:
            b_new = tl.where(b_max > b_ref + SLACK, b_max, b_ref)
            # A row that has seen only -inf so far subtracts 0: -inf - -inf would be NaN for good.
            b_decay = tl.exp2(b_ref - tl.where(b_new == float("-inf"), 0.0, b_new))
            b_sum = b_sum * b_decay
            b_out = b_out * b_decay[:, None]
            b_ref = b_new
        b_shift = tl.where(b_ref == float("-inf"), 0.0, b_ref)
        b_prob = tl.exp2(b_score - b_shift[:, None])
        b_sum += tl.sum(b_prob, 1)
        # BN x BO
        b_value = load_rows(x_value, i_n, stride_vn, i_s, stride_vs, S, i_o, BN, BO, TMA, segment)
        b_out = dot(as_operand(b_prob, b_value, PRECISION), b_value, b_out, PRECISION)

    if p_items is not None:
        if i_o == 0:
            b_lse = (b_ref + tl.log2(b_sum)) * LN2
            store_item_numbers(p_items, p_lse, b_lse, BM, PIECES)
        store_item_out(
            p_items, p_out, p_residual, stride_on, stride_ol, i_o, b_out / b_sum[:, None],
            BM, BO, PIECES, RESIDUAL,
        )  # fmt: skip
    elif SPLITS == 1:
        o_m = i_m + tl.arange(0, BM)
        p_out += i_n.to(tl.int64) * stride_on
        if i_o == 0:
            b_lse = (b_ref + tl.log2(b_sum)) * LN2
            tl.store(p_lse + i_n.to(tl.int64) * L + o_m, b_lse, mask=o_m < L)
        store_out(
            p_out, p_residual + i_n.to(tl.int64) * stride_on, o_m, stride_ol, L, i_o,
            b_out / b_sum[:, None], BO, RESIDUAL, segment,
        )  # fmt: skip
    else:
        o_m = i_m + tl.arange(0, BM)
        p_out += i_n.to(tl.int64) * stride_on
        if i_o == 0:
            o_row = (i_split * N + i_n).to(tl.int64) * L + o_m
            tl.store(p_max + o_row, b_ref, mask=o_m < L)
            tl.store(p_lse + o_row, b_sum, mask=o_m < L)
        p_out += i_split.to(tl.int64) * stride_oz
        store_rows(p_out, o_m, stride_ol, L, i_o, b_out, BO, segment)


@triton.jit
def oc_attention_fwd_combine_kernel(
    p_part, p_max, p_sum, p_out, p_lse, p_residual,
    stride_pz, stride_pn, stride_pl, stride_on, stride_ol, stride_ov,
    N, L, Ev, SPLITS,
    EVEN_V: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Bring the parts of a row to their largest reference and add them, the first part first."""
    n_tiles = tl.cdiv(L, BM)
    i_n = (tl.program_id(0) // n_tiles).to(tl.int64)
    o_m = (tl.program_id(0) % n_tiles) * BM + tl.arange(0, BM)
    o_v = tl.program_id(1) * BV + tl.arange(0, BV)
    m_m = o_m < L
    p_max += i_n * L
    p_sum += i_n * L
    p_part += i_n * stride_pn
    b_ref = tl.full([BM], float("-inf"), tl.float32)
    p_each = p_max
    for _ in range(SPLITS):
        b_ref = tl.maximum(b_ref, tl.load(p_each + o_m, mask=m_m, other=0.0))
        p_each += N * L
    # A part, or a whole row, that has seen only -inf weighs nothing; -inf - -inf would be NaN.
    b_shift = tl.where(b_ref == float("-inf"), 0.0, b_ref)
    b_sum = tl.zeros([BM], tl.float32)
    b_out = tl.zeros([BM, BV], tl.float32)
    for _ in range(SPLITS):
        b_weight = tl.exp2(tl.load(p_max + o_m, mask=m_m, other=0.0) - b_shift)
        b_sum += b_weight * tl.load(p_sum + o_m, mask=m_m, other=1.0)
        # BM x BV
        b_part = load_strided(p_part, o_m, stride_pl, L, o_v, 1, Ev, EVEN_V)
        b_out += b_weight[:, None] * b_part
        p_max += N * L
        p_sum += N * L
        p_part += stride_pz
    if tl.program_id(1) == 0:
        tl.store(p_lse + i_n * L + o_m, (b_ref + tl.log2(b_sum)) * LN2, mask=m_m)
    b_out = b_out / b_sum[:, None]
    b_rounded = b_out.to(p_out.dtype.element_ty)
    p_out += i_n * stride_on
    store_strided(p_out, o_m, stride_ol, L, o_v, stride_ov, Ev, EVEN_V, b_rounded)
    if RESIDUAL:
        b_rest = b_out - b_rounded.to(tl.float32)
        p_residual += i_n * stride_on
        store_strided(p_residual, o_m, stride_ol, L, o_v, stride_ov, Ev, EVEN_V, b_rest)
