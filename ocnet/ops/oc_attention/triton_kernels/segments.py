# SPDX-License-Identifier: MIT
"""Where the tokens of a group are in the map; csrc/common/segments.h has the same.

A launch on groups takes tuples, one tensor and one stride for each stage, and a table with a work
item for each program: a tile of rows of one group. The tokens of a group are counted row by row; a
``segment`` is what finds them in the map. Where a launch is on whole maps it is ``None``.
"""

import triton
import triton.language as tl

# Of one work item; ocnet/ops/partitioned_attention/triton_items.py writes them, in this order.
NUMBERS = tl.constexpr(10)


@triton.jit
def work_item(p_items, PIECES: tl.constexpr):
    """The work item of the program, which is one of ``PIECES`` that share it.

    Its stage, image, first row, the tokens of its group and of its map, and the segment: the map's
    token that is the group's first, the step from a token to the next one of its row, what the end
    of a row adds, and the factor and shift of a division by the row's length.

    It is read anew by every call (``volatile``): what stores need has no room in registers before.
    """
    p_items += (tl.program_id(0) // PIECES).to(tl.int64) * NUMBERS
    i_stage, i_n = tl.load(p_items, volatile=True), tl.load(p_items + 1, volatile=True)
    i_m, n_group, n_map = (
        tl.load(p_items + 2, volatile=True),
        tl.load(p_items + 3, volatile=True),
        tl.load(p_items + 4, volatile=True),
    )
    origin, step, jump = (
        tl.load(p_items + 5, volatile=True),
        tl.load(p_items + 6, volatile=True),
        tl.load(p_items + 7, volatile=True),
    )
    factor = tl.load(p_items + 8, volatile=True).to(tl.uint32, bitcast=True)
    shift = tl.load(p_items + 9, volatile=True).to(tl.uint32, bitcast=True)
    return i_stage, i_n, i_m, n_group, n_map, (origin, step, jump, factor, shift)


@triton.jit
def of_stage(each, i_stage):
    """The tensor, or number, of one stage."""
    chosen = each[0]
    for i in tl.static_range(1, len(each)):
        chosen = tl.where(i_stage == i, each[i], chosen)
    return chosen


@triton.jit
def image_of_stage(each, stride_n, i_stage, i_n):
    """The first token of an image of one stage."""
    return of_stage(each, i_stage) + i_n.to(tl.int64) * of_stage(stride_n, i_stage)


@triton.jit
def places(o_token, segment):
    """The map's tokens that a group's tokens are."""
    if segment is None:
        return o_token
    else:
        origin, step, jump, factor, shift = segment
        o_number = o_token.to(tl.uint32)
        o_row = ((tl.umulhi(o_number, factor) + o_number) >> shift).to(tl.int32)
        return origin + o_token * step + o_row * jump
