# SPDX-License-Identifier: MIT
"""Where the numbers of a tile are, and what is the same for a whole channel."""

import triton
import triton.language as tl

# Sizes in which kernels are not compiled anew for 1, nor for multiples of 16: what the latter would
# tell of addresses, factors of theirs tell already.
SIZES = ("N", "C_OVER", "L", "GROUPS", "PARTS", "TILES", "EACH")


@triton.jit
def place(i, C, PARTS, BC: tl.constexpr, ROWS: tl.constexpr):
    """Slice of channels and part of program ``i``: neighbours read neighbouring memory."""
    if ROWS:
        n_c = tl.cdiv(C, BC)
        i_c, i_part = i % n_c, i // n_c
    else:
        i_c, i_part = i // PARTS, i % PARTS
    return i_c, i_part


@triton.jit
def numbers(
    i_tile, i_c, N, C, L, GROUPS, BLOCKS, WIDE: tl.constexpr, BA: tl.constexpr, BB: tl.constexpr,
    ROWS: tl.constexpr, ENDS: tl.constexpr,
):  # fmt: skip
    """Offsets of a tile's numbers, 64-bit; which of them are the channel's; how many of one channel.

    Of every plane ``GROUPS`` groups of ``WIDE`` numbers at multiples of ``WIDE``, for which the compiler
    sees that they are read and written 16 bytes at a time. With ``ENDS`` the numbers before and after
    those of ``BA`` planes, together less than ``2 * WIDE``.
    """
    if ROWS:
        first_row = i_tile * tl.full([], BA, tl.int64)
        o_row, o_c = first_row + tl.arange(0, BA), i_c * BB + tl.arange(0, BB)
        o_tile = o_row[:, None] * C + o_c[None, :]
        m_tile = (o_row < L)[:, None] & (o_c < C)[None, :]
        count = tl.minimum(L - first_row, BA)
    else:
        whole = GROUPS * WIDE
        o_line, o_near = i_tile * BA + tl.arange(0, BA), tl.arange(0, BB)[None, :]
        if ENDS:
            o_plane, o_first = o_line, o_line * 0
        else:
            o_plane, o_first = o_line // BLOCKS, (o_line % BLOCKS) * BB
        b_start = (o_plane.to(tl.int64) * C + i_c) * L
        # Numbers before the first multiple of WIDE. How many follow in groups does not depend on it, so
        # that a part has as many numbers of every channel.
        b_lead = -b_start & (WIDE - 1)
        if ENDS:
            o_tile = b_start[:, None] + tl.where(o_near < b_lead[:, None], o_near, o_near + whole)
            m_tile = o_near < L - whole
            b_count = o_first + (L - whole)
        else:
            o_own = o_first[:, None] + o_near
            o_tile = tl.multiple_of(b_start + b_lead, [WIDE])[:, None] + o_own
            m_tile = o_own < whole
            b_count = tl.minimum(tl.maximum(whole - o_first, 0), BB)
        m_plane = o_plane < N
        m_tile &= m_plane[:, None]
        count = tl.sum(tl.where(m_plane, b_count, 0), 0)
    return o_tile, m_tile, count.to(tl.float32)


@triton.jit
def tiles_of(i_part, TILES, EACH):
    """The tiles of a part."""
    return i_part * EACH, tl.minimum(TILES, (i_part + 1) * EACH)


@triton.jit
def ends_of(i_part, N, PARTS, BE: tl.constexpr):
    """The tiles of ends that a part has; the tiles hold ``BE`` planes."""
    return tiles_of(i_part, tl.cdiv(N, BE), tl.cdiv(tl.cdiv(N, BE), PARTS))


@triton.jit
def total_of(b_tile, ROWS: tl.constexpr):
    """Sum of each channel, ``BC``."""
    b_sum = tl.sum(b_tile, 0)
    if not ROWS:
        b_sum = tl.sum(b_sum, 0, keep_dims=True)
    return b_sum


@triton.jit
def channels(p_vector, o_c, C, otherwise):
    """A vector of channels; ``otherwise`` past the end, and where there is none."""
    if p_vector is None:
        b_vector = tl.full(o_c.shape, otherwise, tl.float32)
    else:
        b_vector = tl.load(p_vector + o_c, mask=o_c < C, other=otherwise)
    return b_vector


@triton.jit
def scale_of(p_weight, o_c, C, scale_eps, SIGNED: tl.constexpr):
    """The effective scale, and its derivative with respect to the weight: 1 or -1."""
    b_weight = channels(p_weight, o_c, C, 1.0)
    b_sign = tl.where(b_weight < 0, -1.0, 1.0)
    b_scale = b_weight
    if p_weight is not None:
        b_scale = b_sign * b_weight + scale_eps
    if SIGNED:
        b_scale, b_sign = b_sign * b_scale, b_sign * b_sign
    return b_scale, b_sign


@triton.jit
def slopes_of(p_slope, o_c, C, param):
    """What negative numbers are multiplied by, and what others are: 1.

    Both are NaN in a channel whose own slope is not above 0 and finite: its output could not be
    inverted.
    """
    b_slope = channels(p_slope, o_c, C, param)
    if p_slope is not None:
        b_slope = tl.where((b_slope > 0) & (b_slope < float("inf")), b_slope, float("nan"))
    return b_slope, b_slope * 0.0 + 1.0


@triton.jit
def is_negative(b_tile):
    """The sign bit, which tells -0.0 from 0.0."""
    return b_tile.to(tl.int32, bitcast=True) < 0
