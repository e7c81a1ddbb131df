# SPDX-License-Identifier: MIT
"""Operations of spatial gathering, for ``torch.utils.flop_counter`` and for floors in benchmarks."""

from collections.abc import Sequence
from typing import Any

from ocnet.ops._late import when_imported
from ocnet.ops.spatial_gather.autograd import spatial_gather_bwd, spatial_gather_fwd


def forward_flops(n: int, l: int, c: int, k: int) -> int:
    """Return the operations of the forward pass: the weighted sums of features.

    A multiply-add counts as two, as everywhere in torch's counter.
    """
    return 2 * n * l * c * k


def backward_flops(n: int, l: int, c: int, k: int) -> int:
    """Return the operations of the backward pass: a product for each of the two gradients."""
    return 2 * forward_flops(n, l, c, k)


Shape = Sequence[int]


def _of_forward(features: Shape, logits: Shape, *_: Any, **__: Any) -> int:
    n, c, h, w = features
    return forward_flops(n, h * w, c, logits[1])


def _of_backward(grad_out: Shape, features: Shape, logits: Shape, *_: Any, **__: Any) -> int:
    n, c, h, w = features
    return backward_flops(n, h * w, c, logits[1])


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    register_flop_formula(spatial_gather_fwd._opoverload.overloadpacket)(_of_forward)
    register_flop_formula(spatial_gather_bwd._opoverload.overloadpacket)(_of_backward)


when_imported("torch.utils.flop_counter", _register)
