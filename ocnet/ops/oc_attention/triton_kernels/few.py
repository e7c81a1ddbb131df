# SPDX-License-Identifier: MIT
"""Triton device code of pixel-wise attention to few keys, which stay on chip.

A program keeps the keys and values of one image and walks over its query tiles, so every query is
read once and every result written once; tiles are dealt out by number, not by who is free. The
softmax of a row is done in one pass. In the forward the keys are covered by two blocks, ``B0`` and
``B1`` (which may be 0), for sizes between powers of two: 192 keys of 256 channels fit, 256 do not.
"""

import triton
import triton.language as tl

from ocnet.ops.oc_attention.triton_kernels.forward import store_item_out, store_out
from ocnet.ops.oc_attention.triton_kernels.segments import (
    image_of_stage,
    of_stage,
    places,
    work_item,
)
from ocnet.ops.oc_attention.triton_kernels.tiles import (
    LN2,
    LOG2E,
    load_rows,
    store_item,
    store_item_numbers,
    store_rows,
)


@triton.jit
def scores_of(b_query, b_key, i_first, S, factor, B: tl.constexpr):
    """Scores with one block of keys, in units of log2, ``-inf`` past the last key."""
    m_s = (i_first + tl.arange(0, B) < S)[None, :]
    return tl.where(m_s, tl.dot(b_query, tl.trans(b_key)) * factor, float("-inf"))


@triton.jit
def oc_attention_few_fwd_kernel(
    x_query, x_key0, x_key1, x_value0, x_value1, p_out, p_lse, p_residual,
    stride_qn, stride_ql, stride_kn, stride_ks, stride_vn, stride_vs,
    stride_on, stride_ol,
    scale, L, S, PROGRAMS,
    BM: tl.constexpr, BE: tl.constexpr,
    BO: tl.constexpr, B0: tl.constexpr, B1: tl.constexpr, STAGES: tl.constexpr,
    TMA: tl.constexpr, HOPPER: tl.constexpr, RESIDUAL: tl.constexpr, p_items=None,
    PIECES: tl.constexpr = 1,
):  # fmt: skip
    """``out = softmax(scale * query key^T) value`` and its log-sum-exp, ``PROGRAMS`` per image.

    One program computes ``BO`` output channels. With ``p_items`` there are ``PROGRAMS`` per group,
    whose tensors are those of its stage.
    """
    if p_items is not None:
        i_stage, i_n, i_m, L, _n_map, segment = work_item(p_items, PIECES)
        S, i_first = L, i_m // BM
        i_o = tl.program_id(0) % PIECES * BO
        x_query = image_of_stage(x_query, stride_qn, i_stage, i_n)
        x_key0 = image_of_stage(x_key0, stride_kn, i_stage, i_n)
        x_value0 = image_of_stage(x_value0, stride_vn, i_stage, i_n)
        x_key1, x_value1 = x_key0, x_value0
        stride_ql, stride_ks = of_stage(stride_ql, i_stage), of_stage(stride_ks, i_stage)
        stride_vs = of_stage(stride_vs, i_stage)
    else:
        i_n, i_first = tl.program_id(0) // PROGRAMS, tl.program_id(0) % PROGRAMS
        i_o = tl.program_id(1) * BO
        p_out += i_n.to(tl.int64) * stride_on
        p_residual += i_n.to(tl.int64) * stride_on
        p_lse += i_n.to(tl.int64) * L
        segment = None
    # B0 x BE, B0 x BO
    b_key0 = load_rows(x_key0, i_n, stride_kn, 0, stride_ks, S, 0, B0, BE, TMA, segment)
    b_value0 = load_rows(x_value0, i_n, stride_vn, 0, stride_vs, S, i_o, B0, BO, TMA, segment)
    if B1 > 0:
        # B1 x BE, B1 x BO
        b_key1 = load_rows(x_key1, i_n, stride_kn, B0, stride_ks, S, 0, B1, BE, TMA, segment)
        b_value1 = load_rows(x_value1, i_n, stride_vn, B0, stride_vs, S, i_o, B1, BO, TMA, segment)
    for i_tile in tl.range(
        i_first, tl.cdiv(L, BM), PROGRAMS, num_stages=STAGES, disable_licm=HOPPER
    ):
        i_m = i_tile * BM
        # BM x BE
        b_query = load_rows(x_query, i_n, stride_qn, i_m, stride_ql, L, 0, BM, BE, TMA, segment)
        b_score = scores_of(b_query, b_key0, 0, S, scale * LOG2E, B0)
        b_max = tl.max(b_score, 1)
        # -inf - -inf would be NaN where the other block has a finite score.
        b_prob = tl.exp2(b_score - tl.where(b_max == float("-inf"), 0.0, b_max)[:, None])
        b_sum = tl.sum(b_prob, 1)
        b_out = tl.dot(b_prob.to(b_value0.dtype), b_value0)
        if B1 > 0:
            # One block after the other: scores of both at a time have no room in registers.
            b_score = scores_of(b_query, b_key1, B0, S, scale * LOG2E, B1)
            b_new = tl.maximum(b_max, tl.max(b_score, 1))
            b_shift = tl.where(b_new == float("-inf"), 0.0, b_new)
            b_decay = tl.exp2(b_max - b_shift)
            b_prob = tl.exp2(b_score - b_shift[:, None])
            b_sum = b_sum * b_decay + tl.sum(b_prob, 1)
            b_out = tl.dot(b_prob.to(b_value1.dtype), b_value1, b_out * b_decay[:, None])
            b_max = b_new
        if p_items is not None:
            if i_o == 0:
                b_lse = (b_max + tl.log2(b_sum)) * LN2
                store_item_numbers(p_items, p_lse, b_lse, BM, PIECES, i_m)
            store_item_out(
                p_items, p_out, p_residual, stride_on, stride_ol, i_o, b_out / b_sum[:, None],
                BM, BO, PIECES, RESIDUAL, i_m,
            )  # fmt: skip
        else:
            o_m = i_m + tl.arange(0, BM)
            if i_o == 0:
                tl.store(p_lse + o_m, (b_max + tl.log2(b_sum)) * LN2, mask=o_m < L)
            # The first channel is added to the pointers: as a number of every address it spills.
            store_out(
                p_out + i_o, p_residual + i_o, o_m, stride_ol, L, 0,
                b_out / b_sum[:, None], BO, RESIDUAL, segment,
            )  # fmt: skip


@triton.jit
def oc_attention_few_bwd_query_kernel(
    x_query, x_key, x_value, x_grad_out, p_lse, p_delta, p_grad_query,
    stride_qn, stride_ql, stride_kn, stride_ks, stride_vn, stride_vs, stride_gn, stride_gl,
    stride_on, stride_ol,
    scale, L, S, PROGRAMS,
    BM: tl.constexpr, BE: tl.constexpr,
    BV: tl.constexpr, BS: tl.constexpr, STAGES: tl.constexpr, TMA: tl.constexpr,
    HOPPER: tl.constexpr, WANTED: tl.constexpr, p_items=None,
):  # fmt: skip
    """The gradient of the queries (``WANTED``), and ``delta``, which the keys' gradient needs.

    All of a row's probabilities are here, so ``delta`` is the sum of ``P * (grad_out value^T)``: the
    output need not be read, and nothing that its rounding took is missing. ``p_items`` as above.
    """
    if p_items is not None:
        i_stage, i_n, i_m, L, n_map, segment = work_item(p_items, 1)
        S, i_first = L, i_m // BM
        x_query = image_of_stage(x_query, stride_qn, i_stage, i_n)
        x_key = image_of_stage(x_key, stride_kn, i_stage, i_n)
        x_value = image_of_stage(x_value, stride_vn, i_stage, i_n)
        x_grad_out = image_of_stage(x_grad_out, stride_gn, i_stage, i_n)
        stride_ql, stride_ks = of_stage(stride_ql, i_stage), of_stage(stride_ks, i_stage)
        stride_vs, stride_gl = of_stage(stride_vs, i_stage), of_stage(stride_gl, i_stage)
        p_lse = of_stage(p_lse, i_stage) + i_n.to(tl.int64) * n_map
    else:
        i_n, i_first = tl.program_id(0) // PROGRAMS, tl.program_id(0) % PROGRAMS
        p_lse += i_n.to(tl.int64) * L
        p_delta += i_n.to(tl.int64) * L
        p_grad_query += i_n.to(tl.int64) * stride_on
        segment = None
    # BS x BE
    b_key = load_rows(x_key, i_n, stride_kn, 0, stride_ks, S, 0, BS, BE, TMA, segment)
    # BS x BV
    b_value = load_rows(x_value, i_n, stride_vn, 0, stride_vs, S, 0, BS, BV, TMA, segment)
    for i_tile in tl.range(
        i_first, tl.cdiv(L, BM), PROGRAMS, num_stages=STAGES, disable_licm=HOPPER
    ):
        i_m = i_tile * BM
        o_m = i_m + tl.arange(0, BM)
        # BM x BE
        b_query = load_rows(x_query, i_n, stride_qn, i_m, stride_ql, L, 0, BM, BE, TMA, segment)
        # BM x BV
        b_grad = load_rows(x_grad_out, i_n, stride_gn, i_m, stride_gl, L, 0, BM, BV, TMA, segment)
        # BM
        b_lse = tl.load(p_lse + places(o_m, segment), mask=o_m < L, other=0.0) * LOG2E
        b_score = scores_of(b_query, b_key, 0, S, scale * LOG2E, BS)
        b_prob = tl.exp2(b_score - b_lse[:, None])
        b_grad_prob = tl.dot(b_grad, tl.trans(b_value))
        b_delta = tl.sum(b_prob * b_grad_prob, 1)
        if p_items is not None:
            store_item_numbers(p_items, p_delta, b_delta, BM, 1, i_m)
        else:
            tl.store(p_delta + o_m, b_delta, mask=o_m < L)
        if WANTED:
            b_grad_score = b_prob * (b_grad_prob - b_delta[:, None])
            b_grad_query = tl.dot(b_grad_score.to(b_key.dtype), b_key)
            b_grad_query *= scale
            if p_items is not None:
                store_item(
                    p_items, p_grad_query, stride_on, stride_ol, 0, b_grad_query, BM, BE, 1, i_m
                )
            else:
                store_rows(p_grad_query, o_m, stride_ol, L, 0, b_grad_query, BE, segment)
