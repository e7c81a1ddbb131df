# SPDX-License-Identifier: MIT
"""The output."""

import triton
import triton.language as tl

from ocnet.ops.inplace_abn import problem
from ocnet.ops.inplace_abn.triton_kernels.statistics import merged
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
)

LEAKY_RELU = tl.constexpr(problem.LEAKY_RELU)
ELU = tl.constexpr(problem.ELU)
RELU = tl.constexpr(problem.RELU)


@triton.jit
def _expm1(b_y):
    """``exp(y) - 1`` for y that is not above 0, within 4e-7 of it.

    A series where the difference would cancel: what it leaves out is less than 2e-8 of the result.
    """
    b_series = b_y * (1.0 / 362880) + 1.0 / 40320
    b_series = b_series * b_y + 1.0 / 5040
    b_series = b_series * b_y + 1.0 / 720
    b_series = b_series * b_y + 1.0 / 120
    b_series = b_series * b_y + 1.0 / 24
    b_series = b_series * b_y + 1.0 / 6
    b_series = b_series * b_y + 0.5
    b_series = b_series * b_y + 1.0
    return tl.where(b_y > -0.5, b_series * b_y, tl.exp(b_y) - 1.0)


@triton.jit
def _move(p_running, p_new, o_c, C, b_batch, momentum, keep):
    """Write a moved running statistic, if it is wanted."""
    if p_new is not None:
        b_old = tl.load(p_running + o_c, mask=o_c < C, other=0.0)
        tl.store(p_new + o_c, keep * b_old + momentum * b_batch, mask=o_c < C)


@triton.jit
def _normalise(
    p_x, p_residual, p_out, b_mean, b_factor, b_bias, b_slope, b_one, param, first, last, i_c,
    N, C, L, GROUPS, BLOCKS, ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr, BA: tl.constexpr, BB: tl.constexpr, ROWS: tl.constexpr, ENDS: tl.constexpr,
):  # fmt: skip
    """Write tiles of the output, which may lie where the input does."""
    for i_tile in range(first, last):
        o_tile, m_tile, _ = numbers(i_tile, i_c, N, C, L, GROUPS, BLOCKS, WIDE, BA, BB, ROWS, ENDS)
        b_x = tl.load(p_x + o_tile, mask=m_tile, other=0.0).to(tl.float32)
        b_y = (b_x - b_mean[None, :]) * b_factor[None, :] + b_bias[None, :]
        if p_residual is not None:
            b_y += tl.load(p_residual + o_tile, mask=m_tile, other=0.0).to(tl.float32)
        if ACTIVATION == LEAKY_RELU:
            b_y = b_y * tl.where(is_negative(b_y), b_slope[None, :], b_one[None, :])
        elif ACTIVATION == ELU:
            b_y = tl.where(is_negative(b_y), param * _expm1(b_y), b_y)
        elif ACTIVATION == RELU:
            # NaN is not below 0
            b_y = tl.where(b_y < 0, 0.0, b_y)
        tl.store(p_out + o_tile, b_y.to(p_out.dtype.element_ty), mask=m_tile)


@triton.jit(do_not_specialize=(*SIZES, "PACKED"))
def inplace_abn_fwd_kernel(
    p_x, p_residual, p_out, p_weight, p_bias, p_slope, p_packed, p_running_mean, p_running_var,
    p_mean, p_var, p_new_mean, p_new_var,
    momentum, keep, eps, scale_eps, param, PACKED,
    N, C_OVER, L, GROUPS, BLOCKS, PARTS, TILES, EACH,
    ACTIVATION: tl.constexpr, SIGNED: tl.constexpr, BP: tl.constexpr,
    FACTOR: tl.constexpr, WIDE: tl.constexpr, BA: tl.constexpr, BB: tl.constexpr, BC: tl.constexpr,
    BE: tl.constexpr, ROWS: tl.constexpr, ENDS: tl.constexpr,
):  # fmt: skip
    """The output; from packed statistics, which the first part also writes, or from running ones."""
    C = C_OVER * FACTOR
    # Backwards: what the statistics read last is what the cache still has.
    i_c, i_part = place(tl.num_programs(0) - 1 - tl.program_id(0), C, PARTS, BC, ROWS)
    o_c = i_c * BC + tl.arange(0, BC)
    if p_packed is None:
        b_mean = channels(p_running_mean, o_c, C, 0.0)
        b_var = channels(p_running_var, o_c, C, 1.0)
    else:
        b_mean, b_squares, total = merged(p_packed, o_c, C, PACKED, BP)
        b_var = b_squares / tl.maximum(total, 1.0)
        # The only program that reads running statistics of these channels, which it may overwrite.
        if i_part == 0:
            tl.store(p_mean + o_c, b_mean, mask=o_c < C)
            tl.store(p_var + o_c, b_var, mask=o_c < C)
            b_unbiased = b_var * (total / tl.maximum(total - 1.0, 1.0))
            _move(p_running_mean, p_new_mean, o_c, C, b_mean, momentum, keep)
            _move(p_running_var, p_new_var, o_c, C, b_unbiased, momentum, keep)
    b_scale, _ = scale_of(p_weight, o_c, C, scale_eps, SIGNED)
    b_factor = tl.div_rn(1.0, tl.sqrt_rn(b_var + eps)) * b_scale
    b_bias = channels(p_bias, o_c, C, 0.0)
    b_slope, b_one = slopes_of(p_slope, o_c, C, param)
    first, last = tiles_of(i_part, TILES, EACH)
    _normalise(
        p_x, p_residual, p_out, b_mean, b_factor, b_bias, b_slope, b_one, param, first, last, i_c,
        N, C, L, GROUPS, BLOCKS, ACTIVATION, WIDE, BA, BB, ROWS, False,
    )  # fmt: skip
    if ENDS:
        first, last = ends_of(i_part, N, PARTS, BE)
        _normalise(
            p_x, p_residual, p_out, b_mean, b_factor, b_bias, b_slope, b_one, param, first, last,
            i_c, N, C, L, GROUPS, BLOCKS, ACTIVATION, WIDE, BE, 2 * WIDE, ROWS, True,
        )  # fmt: skip
