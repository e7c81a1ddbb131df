# SPDX-License-Identifier: MIT
"""What the kernels share: tiles in and out, products, TF32 rounding, the order of columns."""

import triton
import triton.language as tl

from ocnet.ops.oc_attention.triton_kernels.segments import (
    image_of_stage,
    of_stage,
    places,
    work_item,
)

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def tile_at(
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
def load_strided(
    p_base, o_token, stride_token, tokens, o_channel, stride_channel, channels, EVEN: tl.constexpr
):  # fmt: skip
    """A tile of a token matrix of any strides, zero past its end."""
    p_tile, m_tile = tile_at(
        p_base, o_token, stride_token, tokens, o_channel, stride_channel, channels, EVEN
    )
    return tl.load(p_tile, mask=m_tile, other=0.0)


@triton.jit
def row_at(p_base, o_token, stride_token, tokens, i_channel, BC: tl.constexpr, segment):
    """Pointers of ``BC`` channels of rows that hold them all, and the mask of the rows there are."""
    o_row = places(o_token, segment).to(tl.int64)[:, None] * stride_token
    return p_base + o_row + (i_channel + tl.arange(0, BC))[None, :], (o_token < tokens)[:, None]


@triton.jit
def load_rows(
    x_matrix, i_n, stride_n, i_token, stride_token, tokens, i_channel,
    BT: tl.constexpr, BC: tl.constexpr, TMA: tl.constexpr, segment,
):  # fmt: skip
    """A tile of ``BT x BC`` of a token matrix whose channels lie side by side, zero past its end.

    With ``TMA`` the matrix is a descriptor of shape ``(N, tokens, channels)``, which knows its
    strides, and whose batch axis keeps a tile from reaching into the next image. Without, its rows
    hold the padded channels, and tokens are those of a ``segment`` if there is one.
    """
    if TMA:
        return x_matrix.load([i_n, i_token, i_channel]).reshape(BT, BC)
    else:
        if segment is None:
            x_matrix += i_n.to(tl.int64) * stride_n
        p_tile, m_tile = row_at(
            x_matrix,
            i_token + tl.arange(0, BT), stride_token, tokens, i_channel, BC, segment,
        )  # fmt: skip
        return tl.load(p_tile, mask=m_tile, other=0.0)


@triton.jit
def store_rows(p_base, o_token, stride_token, tokens, i_channel, b_tile, BC: tl.constexpr, segment):
    """Write ``BC`` channels of rows that hold the padded channels, rounded to their dtype."""
    p_tile, m_tile = row_at(p_base, o_token, stride_token, tokens, i_channel, BC, segment)
    tl.store(p_tile, b_tile.to(p_base.dtype.element_ty), mask=m_tile)


@triton.jit
def store_item(
    p_items, p_each, stride_n, stride_token, i_channel, b_tile,
    BM: tl.constexpr, BC: tl.constexpr, PIECES: tl.constexpr, i_row=None,
):  # fmt: skip
    """Write ``BC`` channels of the rows of the program's work item, rounded to their dtype.

    With ``i_row`` the rows from that on are meant, instead of the item's own. The barrier keeps the
    places of the rows from being worked out early, beside the last sums.
    """
    tl.debug_barrier()
    i_stage, i_n, i_m, n_group, _, segment = work_item(p_items, PIECES)
    i_m = i_m if i_row is None else i_row
    p_base = image_of_stage(p_each, stride_n, i_stage, i_n)
    o_m = i_m + tl.arange(0, BM)
    store_rows(
        p_base, o_m, of_stage(stride_token, i_stage), n_group, i_channel, b_tile, BC, segment
    )


@triton.jit
def store_item_numbers(
    p_items, p_each, b_numbers, BM: tl.constexpr, PIECES: tl.constexpr, i_row=None
):  # fmt: skip
    """Write a number for each row of the program's work item; ``i_row`` as above."""
    i_stage, i_n, i_m, n_group, n_map, segment = work_item(p_items, PIECES)
    i_m = i_m if i_row is None else i_row
    p_base = of_stage(p_each, i_stage) + i_n.to(tl.int64) * n_map
    o_m = i_m + tl.arange(0, BM)
    tl.store(p_base + places(o_m, segment), b_numbers, mask=o_m < n_group)


@triton.jit
def store_strided(
    p_base, o_token, stride_token, tokens, o_channel, stride_channel, channels, EVEN: tl.constexpr,
    b_tile,
):  # fmt: skip
    """Write the part of a tile that lies inside a token matrix, rounded to its dtype."""
    p_tile, m_tile = tile_at(
        p_base, o_token, stride_token, tokens, o_channel, stride_channel, channels, EVEN
    )
    tl.store(p_tile, b_tile.to(p_base.dtype.element_ty), mask=m_tile)


@triton.jit
def round_tf32(b_tile):
    """Round float32 numbers to TF32, to nearest: tensor cores would cut the last 13 bits off.

    The bits are an integer here. Half of the last kept place is added before the cut; an infinity
    survives that, a NaN may not and is replaced by the plain one.
    """
    b_bits = b_tile.to(tl.int32, bitcast=True)
    b_bits = (b_bits + 0x1000) & -0x2000
    return tl.where(b_tile == b_tile, b_bits.to(tl.float32, bitcast=True), float("nan"))


@triton.jit
def as_operand(b_tile, b_other, PRECISION: tl.constexpr):
    """Give computed numbers the type and rounding of the operand that they are multiplied with."""
    if PRECISION == "tf32":
        return round_tf32(b_tile)
    else:
        return b_tile.to(b_other.dtype)


@triton.jit
def cut_to_bf16(b_tile):
    """Cut float32 numbers to the 8 significant bits of bfloat16, towards zero; still float32."""
    return (b_tile.to(tl.int32, bitcast=True) & -0x10000).to(tl.float32, bitcast=True)


@triton.jit
def three_parts(b_tile, PRECISION: tl.constexpr):
    """Three bfloat16 numbers whose sum is the float32 number, all of its sign.

    An infinity or NaN is the first part alone.
    """
    b_high = cut_to_bf16(b_tile)
    b_rest = tl.where(tl.abs(b_tile) < float("inf"), b_tile - b_high, 0.0)
    b_high = tl.where(b_tile == b_tile, b_high, b_tile)
    b_middle = cut_to_bf16(b_rest)
    b_low = b_rest - b_middle
    if PRECISION == "bf16x3":
        return b_high.to(tl.bfloat16), b_middle.to(tl.bfloat16), b_low.to(tl.bfloat16)
    else:
        return b_high, b_middle, b_low


@triton.jit
def dot(b_left, b_right, b_sum, PRECISION: tl.constexpr):
    """``b_sum + b_left b_right`` with float32 sums.

    ``PRECISION`` says how float32 operands are multiplied. ``tf32``: both are rounded already, or
    are rounded by ``as_operand``. ``bf16x3``: as exactly as float32 does, by tensor cores: each
    operand is cut into three parts, and of their nine products the six largest are added; the others
    are below the last bit of the largest. The product of the high parts alone decides about
    infinities: the other five have its sign where it is infinite, or are ``0 * inf`` and dropped.
    The result is added to ``b_sum`` outside the tensor cores, whose own sums are cut, not rounded.
    ``float32x3`` is the same without the type, for Triton's interpreter, which has no bfloat16.
    """
    if PRECISION == "bf16x3" or PRECISION == "float32x3":
        b_left1, b_left2, b_left3 = three_parts(b_left, PRECISION)
        b_right1, b_right2, b_right3 = three_parts(b_right, PRECISION)
        b_small = tl.dot(b_left2, b_right2)
        b_small = tl.dot(b_left3, b_right1, b_small)
        b_small = tl.dot(b_left1, b_right3, b_small)
        b_small = tl.dot(b_left2, b_right1, b_small)
        b_small = tl.dot(b_left1, b_right2, b_small)
        b_small = tl.where(b_small == b_small, b_small, 0.0)
        return b_sum + tl.dot(b_left1, b_right1, b_small)
    else:
        return tl.dot(b_left, b_right, b_sum, input_precision="tf32")


@triton.jit
def products(
    b_row, x_row, stride_rn, i_m, stride_rt, rows, x_col, stride_cn, i_c, stride_ct, cols, i_n,
    BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, NC: tl.constexpr,
    PRECISION: tl.constexpr, TMA: tl.constexpr, segment,
):  # fmt: skip
    """Inner products of a row tile with a column tile, and the column tile's first slice.

    With one slice the kept ``b_row`` is all of the row tile. With more, both are read slice by
    slice: a row tile that wide has no room on chip.
    """
    # BN x BC
    b_first = load_rows(x_col, i_n, stride_cn, i_c, stride_ct, cols, 0, BN, BC, TMA, segment)
    b_products = tl.zeros([BM, BN], tl.float32)
    if NC == 1:
        b_products = dot(b_row, tl.trans(b_first), b_products, PRECISION)
    else:
        for i_slice in range(NC):
            # BM x BC
            b_slice = load_rows(
                x_row, i_n, stride_rn, i_m, stride_rt, rows, i_slice * BC, BM, BC, TMA, segment
            )
            # BN x BC
            b_col = load_rows(
                x_col, i_n, stride_cn, i_c, stride_ct, cols, i_slice * BC, BN, BC, TMA, segment
            )
            b_products = dot(b_slice, tl.trans(b_col), b_products, PRECISION)
    return b_products, b_first


@triton.jit
def oc_attention_round_kernel(
    p_in, p_out, stride_in, stride_it, stride_ic, stride_on, stride_ot,
    tokens, channels, width, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Copy a token matrix of any strides, as TF32, into rows of ``width`` channels side by side.

    Further channels than there are become zero.
    """
    n_tiles = tl.cdiv(tokens, BT)
    i_n = (tl.program_id(0) // n_tiles).to(tl.int64)
    o_t = (tl.program_id(0) % n_tiles) * BT + tl.arange(0, BT)
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)
    # BT x BC
    b_tile = load_strided(
        p_in + i_n * stride_in, o_t, stride_it, tokens, o_c, stride_ic, channels, False
    )
    store_strided(
        p_out + i_n * stride_on, o_t, stride_ot, tokens, o_c, 1, width, False, round_tf32(b_tile)
    )


@triton.jit
def part_of(n_tiles, i_split, SPLITS: tl.constexpr):
    """First tile and number of tiles of one part of the columns; parts differ by one tile at most."""
    i_first = i_split * n_tiles // SPLITS
    return i_first, (i_split + 1) * n_tiles // SPLITS - i_first
