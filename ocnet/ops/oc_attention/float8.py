# SPDX-License-Identifier: MIT
"""The op ``ocnet::oc_attention_fp8``: attention in 8 bits, without gradients, and its back ends."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ocnet.ops._backends import Backends, Support
from ocnet.ops._hopper import NARROW
from ocnet.ops._layout import empty_map, tokens
from ocnet.ops._registration import register_autocast
from ocnet.ops.oc_attention import float8_cuda, float8_reference
from ocnet.ops.oc_attention.autograd import scale_of
from ocnet.ops.oc_attention.problem import Float8Call, Problem

DTYPES = NARROW


class Float8Backend(Protocol):
    """The functions that every back end of this op has."""

    def supports(self, problem: Problem, /) -> Support:
        """Tell whether the back end takes the call."""
        ...

    def forward(self, call: Float8Call, /) -> None:
        """Write the output of the call."""
        ...


@dataclass(frozen=True)
class _Without:
    """A back end that refuses every call."""

    reason: str

    def supports(self, problem: Problem, /) -> Support:
        """Refuse the call."""
        return Support(False, self.reason)

    def forward(self, call: Float8Call, /) -> None:
        """Never called."""
        raise NotImplementedError(self.reason)


_NO_PRODUCTS = _Without("it has no 8-bit products")

BACKENDS: Backends[Float8Backend] = Backends(
    "oc_attention",
    (
        ("cpu", _NO_PRODUCTS),
        ("triton", _NO_PRODUCTS),
        ("cuda", float8_cuda),
        ("reference", float8_reference),
    ),
)


@torch.library.custom_op(
    "ocnet::oc_attention_fp8",
    mutates_args=(),
    schema="(Tensor query, Tensor? key, Tensor value, float? scale, str backend) -> Tensor",
)
def oc_attention_fp8(
    query: Tensor, key: Tensor | None, value: Tensor, scale: float | None, backend: str
) -> Tensor:
    """Return the context map of a call in 8 bits; without a key, the query's map is the key too."""
    chosen = BACKENDS.choose(Problem.of(query, key, value), backend)
    out = empty_map(query, value.shape[1])
    if query.shape[0] > 0:
        chosen.forward(
            Float8Call(
                query=tokens(query),
                key=None if key is None else tokens(key),
                value=tokens(value),
                scale=scale_of(query, scale),
                out=tokens(out),
            )
        )
    return out


@oc_attention_fp8.register_fake
def _(
    query: Tensor, key: Tensor | None, value: Tensor, scale: float | None, backend: str
) -> Tensor:
    return empty_map(query, value.shape[1])


register_autocast("oc_attention_fp8")
