# SPDX-License-Identifier: MIT
"""Mean and sum of squared deviations of parts, and their merging."""

import triton
import triton.language as tl

from ocnet.ops.inplace_abn.triton_kernels.tiles import (
    SIZES,
    ends_of,
    numbers,
    place,
    tiles_of,
    total_of,
)


@triton.jit
def _tile_deviations(b_x, m_tile, b_mean, count, ROWS: tl.constexpr, FULL: tl.constexpr):
    """Mean of a tile, less ``b_mean``, and the sum of squared deviations from it."""
    b_apart = b_x - b_mean[None, :]
    if not FULL:
        b_apart = tl.where(m_tile, b_apart, 0.0)
    b_delta = total_of(b_apart, ROWS) * (1.0 / tl.maximum(count, 1.0))
    b_apart -= b_delta[None, :]
    if not FULL:
        b_apart = tl.where(m_tile, b_apart, 0.0)
    return b_delta, total_of(b_apart * b_apart, ROWS)


@triton.jit
def _deviations(
    p_x, b_mean, b_squares, total, first, last, i_c, N, C, L, GROUPS, BLOCKS,
    WIDE: tl.constexpr, BA: tl.constexpr, BB: tl.constexpr, ROWS: tl.constexpr, ENDS: tl.constexpr,
):  # fmt: skip
    """Add tiles to a mean, a sum of squared deviations from it, and a count.

    A tile is read once and summed twice, around the mean so far and around its own.
    """
    for i_tile in range(first, last):
        o_tile, m_tile, count = numbers(
            i_tile, i_c, N, C, L, GROUPS, BLOCKS, WIDE, BA, BB, ROWS, ENDS
        )
        b_x = tl.load(p_x + o_tile, mask=m_tile, other=0.0).to(tl.float32)
        # Most tiles have nothing to leave out.
        if count == (BA if ROWS else BA * BB):
            b_delta, b_more = _tile_deviations(b_x, m_tile, b_mean, count, ROWS, True)
        else:
            b_delta, b_more = _tile_deviations(b_x, m_tile, b_mean, count, ROWS, False)
        share = count / tl.maximum(total + count, 1.0)
        b_mean += b_delta * share
        b_squares += b_more + b_delta * b_delta * (total * share)
        total += count
    return b_mean, b_squares, total


@triton.jit(do_not_specialize=SIZES)
def inplace_abn_stats_kernel(
    p_x, p_packed,
    N, C_OVER, L, GROUPS, BLOCKS, PARTS, TILES, EACH,
    FACTOR: tl.constexpr, WIDE: tl.constexpr, BA: tl.constexpr, BB: tl.constexpr, BC: tl.constexpr,
    BE: tl.constexpr, ROWS: tl.constexpr, ENDS: tl.constexpr,
):  # fmt: skip
    """Statistics of one part of the numbers, packed as those of a rank are."""
    C = C_OVER * FACTOR
    i_c, i_part = place(tl.program_id(0), C, PARTS, BC, ROWS)
    o_c = i_c * BC + tl.arange(0, BC)
    first, last = tiles_of(i_part, TILES, EACH)
    # Deviations are from a number of the part until there is a mean, so that a large mean costs none
    # of their digits.
    o_pivot = first.to(tl.int64) * BA // BLOCKS * C + o_c
    if not ROWS:
        o_pivot *= L
    b_mean = tl.load(p_x + o_pivot, mask=o_c < C, other=0.0).to(tl.float32)
    b_squares, total = tl.zeros([BC], tl.float32), tl.full([], 0.0, tl.float32)
    b_mean, b_squares, total = _deviations(
        p_x, b_mean, b_squares, total, first, last, i_c, N, C, L, GROUPS, BLOCKS,
        WIDE, BA, BB, ROWS, False,
    )  # fmt: skip
    if ENDS:
        first, last = ends_of(i_part, N, PARTS, BE)
        b_mean, b_squares, total = _deviations(
            p_x, b_mean, b_squares, total, first, last, i_c, N, C, L, GROUPS, BLOCKS,
            WIDE, BE, 2 * WIDE, ROWS, True,
        )  # fmt: skip
    p_part = p_packed + i_part.to(tl.int64) * (2 * C + 1)
    tl.store(p_part + o_c, b_mean, mask=o_c < C)
    tl.store(p_part + C + o_c, b_squares, mask=o_c < C)
    if i_c == 0:
        tl.store(p_part + 2 * C, total)


@triton.jit
def merged(p_packed, o_c, C, PACKED, BP: tl.constexpr):
    """Mean, sum of squared deviations and count of packed parts; parts of count 0 are left out."""
    b_mean, b_squares = tl.zeros(o_c.shape, tl.float32), tl.zeros(o_c.shape, tl.float32)
    total = 0.0
    for i_p in range(0, PACKED, BP):
        o_p = i_p + tl.arange(0, BP)
        p_part = p_packed + o_p.to(tl.int64) * (2 * C + 1)
        b_count = tl.load(p_part + 2 * C, mask=o_p < PACKED, other=0.0)
        m_part = (o_p < PACKED)[:, None] & (o_c < C)[None, :]
        p_means = p_part[:, None] + o_c[None, :]
        b_means = tl.load(p_means, mask=m_part, other=0.0)
        b_more = tl.load(p_means + C, mask=m_part, other=0.0)
        m_any = (b_count > 0)[:, None]
        count = tl.sum(b_count, 0)
        b_weights = (b_count / tl.maximum(count, 1.0))[:, None]
        # The mean of means, and then what its rounding left.
        b_own = tl.sum(tl.where(m_any, b_weights * b_means, 0.0), 0)
        b_own += tl.sum(tl.where(m_any, b_weights * (b_means - b_own[None, :]), 0.0), 0)
        b_apart = b_means - b_own[None, :]
        b_more += b_count[:, None] * b_apart * b_apart
        share = count / tl.maximum(total + count, 1.0)
        b_delta = b_own - b_mean
        b_squares += tl.sum(tl.where(m_any, b_more, 0.0), 0) + b_delta * b_delta * (total * share)
        b_mean += b_delta * share
        total += count
    return b_mean, b_squares, total


@triton.jit(do_not_specialize=("PACKED",))
def inplace_abn_merge_kernel(
    p_packed, p_out, C, PACKED, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Packed parts made one."""
    o_c = tl.program_id(0) * BC + tl.arange(0, BC)
    b_mean, b_squares, total = merged(p_packed, o_c, C, PACKED, BP)
    tl.store(p_out + o_c, b_mean, mask=o_c < C)
    tl.store(p_out + C + o_c, b_squares, mask=o_c < C)
    if tl.program_id(0) == 0:
        tl.store(p_out + 2 * C, total)
