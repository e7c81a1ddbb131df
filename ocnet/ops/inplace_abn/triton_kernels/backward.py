# SPDX-License-Identifier: MIT
"""Sums over the output and its gradient, and the gradients."""

import torch
import triton
import triton.language as tl

from ocnet.ops.inplace_abn import problem
from ocnet.ops.inplace_abn.triton_kernels.tiles import (
    SIZES,
    channels,
    ends_of,
    is_negative,
    numbers,
    place,
    scale_of,
    slopes_of,
    tiles_of,
    total_of,
)

LEAKY_RELU = tl.constexpr(problem.LEAKY_RELU)
ELU = tl.constexpr(problem.ELU)
RELU = tl.constexpr(problem.RELU)
LN2 = tl.constexpr(0.6931471805599453)
MOST = tl.constexpr(torch.finfo(torch.float32).max)


@triton.jit
def _log1p(b_ratio):
    """``log(1 + r)`` for r above -1 and not above 0, within 4e-7 of it.

    ``1 + r`` is a power of two times ``1 + t``, t from -1/4 to 1/2, whose logarithm is the series of
    ``2 artanh(t / (2 + t))``; what it leaves out is less than 1e-8 of the result.
    """
    b_bits = (b_ratio + 1.0).to(tl.int32, bitcast=True)
    # From the bits of 3/4 the exponent in its place among those of a float; then the bits of 1.
    b_exponent = (b_bits - 0x3F400000) & -0x800000
    b_power = (0x3F800000 - b_exponent).to(tl.float32, bitcast=True)
    b_t = b_ratio * b_power + (b_power - 1.0)
    b_s = b_t / (b_t + 2.0)
    b_square = b_s * b_s
    b_series = b_square * (2.0 / 9) + 2.0 / 7
    b_series = b_series * b_square + 2.0 / 5
    b_series = b_series * b_square + 2.0 / 3
    b_series = b_series * b_square + 2.0
    return b_exponent.to(tl.float32) * (LN2 / 0x800000) + b_series * b_s


@triton.jit
def _added(p_parts, i_row, o_c, C, PARTS, BP: tl.constexpr):
    """Sum of each channel over the parts, in a fixed order; ``i_row`` of the 3 that a part has."""
    b_sum = tl.zeros(o_c.shape, tl.float32)
    for i_p in range(0, PARTS, BP):
        o_p = i_p + tl.arange(0, BP)
        p_part = p_parts + (o_p.to(tl.int64) * 3 + i_row)[:, None] * C + o_c[None, :]
        m_part = (o_p < PARTS)[:, None] & (o_c < C)[None, :]
        b_sum += tl.sum(tl.load(p_part, mask=m_part, other=0.0), 0)
    return b_sum


@triton.jit
def _write_vectors(
    p_parts, p_grad_weight, p_grad_bias, p_grad_slope, b_first, b_second, b_over, o_c, C, PARTS,
    BP: tl.constexpr,
):  # fmt: skip
    """Write the gradients of vectors that are wanted; ``b_over``: the scale with a sign."""
    m_c = o_c < C
    if p_grad_weight is not None:
        tl.store(p_grad_weight + o_c, tl.div_rn(b_second, b_over), mask=m_c)
    if p_grad_bias is not None:
        tl.store(p_grad_bias + o_c, b_first, mask=m_c)
    if p_grad_slope is not None:
        tl.store(p_grad_slope + o_c, _added(p_parts, 2, o_c, C, PARTS, BP), mask=m_c)


@triton.jit(do_not_specialize=("ADDED",))
def inplace_abn_finish_kernel(
    p_parts, p_sums, p_weight, p_grad_weight, p_grad_bias, p_grad_slope, scale_eps, C, ADDED,
    SIGNED: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Sums of the parts, and the gradients of vectors."""
    o_c = tl.program_id(0) * BC + tl.arange(0, BC)
    b_first = _added(p_parts, 0, o_c, C, ADDED, BP)
    b_second = _added(p_parts, 1, o_c, C, ADDED, BP)
    if p_sums is not None:
        tl.store(p_sums + o_c, b_first, mask=o_c < C)
        tl.store(p_sums + C + o_c, b_second, mask=o_c < C)
    b_scale, b_sign = scale_of(p_weight, o_c, C, scale_eps, SIGNED)
    _write_vectors(
        p_parts, p_grad_weight, p_grad_bias, p_grad_slope, b_first, b_second, b_sign * b_scale,
        o_c, C, ADDED, BP,
    )  # fmt: skip


@triton.jit
def _backward(
    p_out, p_residual, p_grad_out, p_grad_x, p_grad_residual,
    b_bias, b_slope, b_inverse, b_one, b_bound, b_factor, b_centred_factor, b_offset,
    param, floor, first, last, i_c, N, C, L, GROUPS, BLOCKS,
    ACTIVATION: tl.constexpr, CENTRED: tl.constexpr, OFFSET: tl.constexpr, CLAMP: tl.constexpr,
    SLOPES: tl.constexpr,
    WIDE: tl.constexpr, BA: tl.constexpr, BB: tl.constexpr, ROWS: tl.constexpr, ENDS: tl.constexpr,
):  # fmt: skip
    """Write the gradients of tiles that are wanted, and return the three sums of each channel."""
    b_first, b_second = tl.zeros([BA, BB], tl.float32), tl.zeros([BA, BB], tl.float32)
    b_third = tl.zeros([BA, BB], tl.float32)
    for i_tile in range(first, last):
        o_tile, m_tile, _ = numbers(i_tile, i_c, N, C, L, GROUPS, BLOCKS, WIDE, BA, BB, ROWS, ENDS)
        b_z = tl.load(p_out + o_tile, mask=m_tile, other=0.0).to(tl.float32)
        b_grad = tl.load(p_grad_out + o_tile, mask=m_tile, other=0.0).to(tl.float32)
        b_y, b_dy = b_z, b_grad
        m_negative = is_negative(b_z)
        if ACTIVATION == LEAKY_RELU:
            b_y = b_z * tl.where(m_negative, b_inverse[None, :], b_one[None, :])
            b_dy = b_grad * tl.where(m_negative, b_slope[None, :], b_one[None, :])
        elif ACTIVATION == ELU:
            b_ratio = tl.maximum(b_z * b_inverse[None, :], floor, propagate_nan=tl.PropagateNan.ALL)
            b_y = tl.where(m_negative, _log1p(b_ratio), b_z)
            b_dy = tl.where(m_negative, b_grad * (b_z + param), b_grad)
        elif ACTIVATION == RELU:
            b_dy = tl.where(b_z > 0, b_grad, 0.0 * b_z)
        if p_grad_residual is not None:
            tl.store(p_grad_residual + o_tile, b_dy.to(p_grad_residual.dtype.element_ty), m_tile)
        if CENTRED:
            b_centred = b_y
            if p_residual is not None:
                b_centred -= tl.load(p_residual + o_tile, mask=m_tile, other=0.0).to(tl.float32)
            b_centred -= b_bias[None, :]
            if CLAMP:
                b_centred = tl.maximum(
                    b_centred, -b_bound[None, :], propagate_nan=tl.PropagateNan.ALL
                )
                b_centred = tl.minimum(
                    b_centred, b_bound[None, :], propagate_nan=tl.PropagateNan.ALL
                )
            # Past the ends the gradient is 0.
            b_first += b_dy
            b_second += b_centred * b_dy
        if SLOPES:
            # NaN is not at least 0, so it stays in the sum whatever its sign.
            b_third += tl.where(b_z >= 0, 0.0, b_y * b_grad)
        if p_grad_x is not None:
            b_dx = b_factor[None, :] * b_dy
            if OFFSET:
                b_dx += b_centred_factor[None, :] * b_centred + b_offset[None, :]
            tl.store(p_grad_x + o_tile, b_dx.to(p_grad_x.dtype.element_ty), m_tile)
    return total_of(b_first, ROWS), total_of(b_second, ROWS), total_of(b_third, ROWS)


@triton.jit(do_not_specialize=(*SIZES, "ADDED"))
def inplace_abn_bwd_kernel(
    p_out, p_residual, p_grad_out, p_weight, p_bias, p_slope, p_var, p_sums, p_count, p_parts,
    p_grad_x, p_grad_residual, p_grad_weight, p_grad_bias, p_grad_slope,
    count, eps, scale_eps, param, floor, ADDED,
    N, C_OVER, L, GROUPS, BLOCKS, PARTS, TILES, EACH,
    ACTIVATION: tl.constexpr, SIGNED: tl.constexpr, CLAMP: tl.constexpr, SLOPES: tl.constexpr,
    BP: tl.constexpr,
    FACTOR: tl.constexpr, WIDE: tl.constexpr, BA: tl.constexpr, BB: tl.constexpr, BC: tl.constexpr,
    BE: tl.constexpr, ROWS: tl.constexpr, ENDS: tl.constexpr,
):  # fmt: skip
    """One pass over the output and its gradient.

    With ``p_parts``: writes the sums of each part. With ``p_sums``, which are ``ADDED`` such parts: uses
    their sums for the gradient of the input; the first part writes the gradients of vectors. Without
    ``p_sums`` statistics were frozen, and the gradients of maps need no sums.
    """
    C = C_OVER * FACTOR
    i = tl.program_id(0)
    if p_sums is not None:
        # Backwards, as in the forward pass.
        i = tl.num_programs(0) - 1 - i
    i_c, i_part = place(i, C, PARTS, BC, ROWS)
    o_c = i_c * BC + tl.arange(0, BC)
    m_c = o_c < C
    b_scale, b_sign = scale_of(p_weight, o_c, C, scale_eps, SIGNED)
    b_bias = channels(p_bias, o_c, C, 0.0)
    b_slope, b_one = slopes_of(p_slope, o_c, C, param)
    b_inverse = tl.div_rn(b_one, b_slope)
    # An infinite one would make NaN of what is stored as -0.
    b_inverse = tl.where(b_inverse > MOST, MOST, b_inverse)
    if p_count is not None:
        count = tl.load(p_count)
    b_bound = tl.abs(b_scale) * tl.sqrt_rn(tl.maximum(count - 1.0, 0.0))
    b_factor, b_centred_factor, b_offset = b_scale, b_scale, b_scale
    if p_grad_x is not None:
        b_invstd = tl.div_rn(1.0, tl.sqrt_rn(channels(p_var, o_c, C, 1.0) + eps))
        b_factor = b_scale * b_invstd
    if p_sums is not None:
        b_all = _added(p_sums, 0, o_c, C, ADDED, BP)
        b_all_second = _added(p_sums, 1, o_c, C, ADDED, BP)
        b_centred_factor = -b_invstd * tl.div_rn(b_all_second, b_scale * count)
        b_offset = -b_factor * tl.div_rn(b_all, count)
        if i_part == 0:
            _write_vectors(
                p_sums, p_grad_weight, p_grad_bias, p_grad_slope, b_all, b_all_second,
                b_sign * b_scale, o_c, C, ADDED, BP,
            )  # fmt: skip
    CENTRED: tl.constexpr = p_sums is not None or p_parts is not None
    first, last = tiles_of(i_part, TILES, EACH)
    b_first, b_second, b_third = _backward(
        p_out, p_residual, p_grad_out, p_grad_x, p_grad_residual,
        b_bias, b_slope, b_inverse, b_one, b_bound, b_factor, b_centred_factor, b_offset,
        param, floor, first, last, i_c, N, C, L, GROUPS, BLOCKS,
        ACTIVATION, CENTRED, p_sums is not None, CLAMP, SLOPES, WIDE, BA, BB, ROWS, False,
    )  # fmt: skip
    if ENDS:
        first, last = ends_of(i_part, N, PARTS, BE)
        b_more, b_more_second, b_more_third = _backward(
            p_out, p_residual, p_grad_out, p_grad_x, p_grad_residual,
            b_bias, b_slope, b_inverse, b_one, b_bound, b_factor, b_centred_factor, b_offset,
            param, floor, first, last, i_c, N, C, L, GROUPS, BLOCKS, ACTIVATION, CENTRED,
            p_sums is not None, CLAMP, SLOPES, WIDE, BE, 2 * WIDE, ROWS, True,
        )  # fmt: skip
        b_first, b_second = b_first + b_more, b_second + b_more_second
        b_third += b_more_third
    if p_parts is not None:
        p_part = p_parts + i_part.to(tl.int64) * 3 * C + o_c
        tl.store(p_part, b_first, mask=m_c)
        tl.store(p_part + C, b_second, mask=m_c)
        if SLOPES:
            tl.store(p_part + 2 * C, b_third, mask=m_c)
