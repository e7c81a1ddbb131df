# SPDX-License-Identifier: MIT
"""Operations of attention, for ``torch.utils.flop_counter`` and for floors in benchmarks."""

from collections.abc import Sequence
from typing import Any

from ocnet.ops._late import when_imported
from ocnet.ops.oc_attention.autograd import oc_attention_bwd, oc_attention_fwd
from ocnet.ops.oc_attention.float8 import oc_attention_fp8


def forward_flops(n: int, l: int, s: int, e: int, ev: int) -> int:
    """Return the operations of the forward pass: scores, and weighted sums of values.

    A multiply-add counts as two, as everywhere in torch's counter.
    """
    return 2 * n * l * s * (e + ev)


def backward_flops(n: int, l: int, s: int, e: int, ev: int, shared: bool) -> int:
    """Return the operations of the backward pass.

    The scores again, the gradient of the weights, and one product for each of the three gradients.
    With shared keys the symmetric form forms one gradient of query and key from two products of
    value width, and the lesser count is taken.
    """
    general = 3 * e + 2 * ev
    return 2 * n * l * s * (min(general, 2 * e + 3 * ev) if shared else general)


Shape = Sequence[int]


def _sizes(query: Shape, value: Shape) -> tuple[int, int, int, int, int]:
    n, e, h, w = query
    return n, h * w, value[2] * value[3], e, value[1]


def _of_forward(query: Shape, key: Shape | None, value: Shape, *_: Any, **__: Any) -> int:
    return forward_flops(*_sizes(query, value))


def _of_backward(
    grad_out: Shape, query: Shape, key: Shape | None, value: Shape, *_: Any, **__: Any
) -> int:
    return backward_flops(*_sizes(query, value), shared=key is None)


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    register_flop_formula(oc_attention_fwd._opoverload.overloadpacket)(_of_forward)
    register_flop_formula(oc_attention_fp8._opoverload.overloadpacket)(_of_forward)
    register_flop_formula(oc_attention_bwd._opoverload.overloadpacket)(_of_backward)


when_imported("torch.utils.flop_counter", _register)
