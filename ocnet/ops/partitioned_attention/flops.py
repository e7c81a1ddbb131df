# SPDX-License-Identifier: MIT
"""Operations of attention within groups, for ``torch.utils.flop_counter`` and for floors."""

from collections.abc import Sequence
from typing import Any

from ocnet.ops._late import when_imported
from ocnet.ops._partition import Axes, decode
from ocnet.ops.oc_attention.flops import Shape, backward_flops, forward_flops
from ocnet.ops.partitioned_attention.autograd import (
    partitioned_attention_bwd,
    partitioned_attention_fwd,
)


def pairs(axes: Axes) -> int:
    """Return how many pairs of pixels of one map are in one group."""
    return sum(
        shape.rows * shape.columns * (shape.height * shape.width) ** 2 for shape in axes.shapes()
    )


Shapes = Sequence[Shape]


def _totals(query: Shapes, value: Shapes, partition: Sequence[int]) -> tuple[int, int, int]:
    """Return the pairs of pixels of all stages, and the channels."""
    total = sum(
        stage[0] * pairs(each.axes(stage[2], stage[3]))
        for stage, each in zip(query, decode(partition), strict=True)
    )
    return total, query[0][1], value[0][1]


def _of_forward(
    query: Shapes, key: Shapes, value: Shapes, partition: Sequence[int], *_: Any, **__: Any
) -> int:
    total, e, ev = _totals(query, value, partition)
    return forward_flops(1, total, 1, e, ev)


def _of_backward(
    grad_out: Shapes, query: Shapes, key: Shapes, value: Shapes, results: Shapes,
    partition: Sequence[int], *_: Any, **__: Any,
) -> int:  # fmt: skip
    total, e, ev = _totals(query, value, partition)
    return backward_flops(1, total, 1, e, ev, shared=len(key) == 0)


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    register_flop_formula(partitioned_attention_fwd._opoverload.overloadpacket)(_of_forward)
    register_flop_formula(partitioned_attention_bwd._opoverload.overloadpacket)(_of_backward)


when_imported("torch.utils.flop_counter", _register)
