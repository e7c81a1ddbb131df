# SPDX-License-Identifier: MIT
"""The ops ``ocnet::oc_attention_fwd`` and ``_bwd``: allocation, fakes, autograd, autocast, back ends.

Both are functional. The key is optional: absent, the query's map is the key too (OCNet's shared
transform), and the backward returns one gradient for both roles.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from ocnet.ops._backends import Backends, Support
from ocnet.ops._layout import empty_map, tokens
from ocnet.ops._precision import tf32_allowed
from ocnet.ops._registration import register_autocast
from ocnet.ops.oc_attention import cpu_backend, cuda_backend, reference, triton_backend
from ocnet.ops.oc_attention.problem import BackwardCall, ForwardCall, Problem


class AttentionBackend(Protocol):
    """The functions that every back end module of this op has."""

    def supports(self, problem: Problem, /) -> Support:
        """Tell whether the back end takes the call."""
        ...

    def forward(self, call: ForwardCall, /) -> None:
        """Write the outputs of the call."""
        ...

    def backward(self, call: BackwardCall, /) -> None:
        """Write the gradients that are not ``None``."""
        ...


# CPU and GPU back ends refuse each other's tensors, so on a GPU this is "Triton before CUDA": its
# kernels reach Hopper's own tensor-core instructions, those of the CUDA library mostly the older ones.
# Its forward pass has kernels for Hopper, which come first once they are confirmed.
BACKENDS: Backends[AttentionBackend] = Backends(
    "oc_attention",
    (
        ("cpu", cpu_backend),
        ("triton", triton_backend),
        ("cuda", cuda_backend),
        ("reference", reference),
    ),
    first=[("cuda", cuda_backend.is_first)],
)


def scale_of(query: Tensor, scale: float | None) -> float:
    """Return the factor of the scores of a call on such queries."""
    return float(query.shape[1] ** -0.5) if scale is None else scale


def empty_results(
    query: Tensor, value: Tensor, keep_residual: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the context, the log-sum-exps, and the residual, without elements where there is none."""
    n, _, h, w = query.shape
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    lse = torch.empty((n, h * w), dtype=wide, device=query.device)
    rounded = query.dtype != wide
    residual = empty_map(query, value.shape[1]) if keep_residual and rounded else _nothing(query)
    return empty_map(query, value.shape[1]), lse, residual


def _nothing(like: Tensor) -> Tensor:
    return like.new_empty((0,))


def _residual_rows(residual: Tensor) -> Tensor | None:
    return None if residual.dim() == 1 else tokens(residual)


@torch.library.custom_op(
    "ocnet::oc_attention_fwd",
    mutates_args=(),
    schema="(Tensor query, Tensor? key, Tensor value, float? scale, str backend,"
    " bool keep_residual) -> (Tensor, Tensor, Tensor)",
)
def oc_attention_fwd(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    scale: float | None,
    backend: str,
    keep_residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the context map, the row-wise log-sum-exp ``(N, L)``, and the context's residual.

    The residual is what rounding to 16 bits took from the context. The backward needs the unrounded
    context: where the softmax is peaked, the gradients of query and key are small differences of it.
    Without ``keep_residual``, and for wider dtypes, it has no elements.
    """
    chosen = BACKENDS.choose(Problem.of(query, key, value), backend)
    out, lse, residual = empty_results(query, value, keep_residual)
    if query.shape[0] > 0:
        chosen.forward(
            ForwardCall(
                query=tokens(query),
                key=None if key is None else tokens(key),
                value=tokens(value),
                scale=scale_of(query, scale),
                tf32=tf32_allowed(query),
                out=tokens(out),
                lse=lse,
                residual=_residual_rows(residual),
            )
        )
    return out, lse, residual


@oc_attention_fwd.register_fake
def _(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    scale: float | None,
    backend: str,
    keep_residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_results(query, value, keep_residual)


@torch.library.custom_op(
    "ocnet::oc_attention_bwd",
    mutates_args=(),
    schema="(Tensor grad_out, Tensor query, Tensor? key, Tensor value, Tensor out, Tensor lse,"
    " Tensor residual, float? scale, str backend, bool need_query, bool need_key, bool need_value)"
    " -> (Tensor, Tensor, Tensor)",
)
def oc_attention_bwd(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    residual: Tensor,
    scale: float | None,
    backend: str,
    need_query: bool,
    need_key: bool,
    need_value: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value; those not needed have no elements."""
    chosen = BACKENDS.choose(Problem.of(query, key, value), backend, backward=True)
    grads = _empty_grads(query, key, value, need_query, need_key, need_value)
    if query.shape[0] > 0:
        needed = (need_query, need_key, need_value)
        targets = [tokens(g) if need else None for g, need in zip(grads, needed, strict=True)]
        chosen.backward(
            BackwardCall(
                grad_out=tokens(grad_out),
                query=tokens(query),
                key=None if key is None else tokens(key),
                value=tokens(value),
                out=tokens(out),
                lse=lse,
                residual=_residual_rows(residual),
                scale=scale_of(query, scale),
                tf32=tf32_allowed(query),
                grad_query=targets[0],
                grad_key=targets[1],
                grad_value=targets[2],
            )
        )
    return grads


def empty_like_source(source: Tensor) -> Tensor:
    """Allocate the gradient of a map."""
    return empty_map(source, source.shape[1])


def _empty_grads(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    need_query: bool,
    need_key: bool,
    need_value: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    def empty(source: Tensor | None, needed: bool) -> Tensor:
        if source is None or not needed:
            return _nothing(query)
        return empty_like_source(source)

    return empty(query, need_query), empty(key, need_key), empty(value, need_value)


@oc_attention_bwd.register_fake
def _(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    residual: Tensor,
    scale: float | None,
    backend: str,
    need_query: bool,
    need_key: bool,
    need_value: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_grads(query, key, value, need_query, need_key, need_value)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, value, ctx.scale, ctx.backend, _keep_residual = inputs
    out, lse, residual = output
    ctx.mark_non_differentiable(lse, residual)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, out, lse, residual)


def _backward(ctx: Any, grad_out: Tensor | None, *_others: Tensor | None) -> tuple[Any, ...]:
    if grad_out is None:
        return None, None, None, None, None, None
    query, key, value, out, lse, residual = ctx.saved_tensors
    need_query, need_key, need_value = ctx.needs_input_grad[:3]
    need_key = need_key and key is not None
    grads = torch.ops.ocnet.oc_attention_bwd(
        grad_out,
        query,
        key,
        value,
        out,
        lse,
        residual,
        ctx.scale,
        ctx.backend,
        need_query,
        need_key,
        need_value,
    )
    needed = (need_query, need_key, need_value)
    wanted = (grad if need else None for grad, need in zip(grads, needed, strict=True))
    return (*wanted, None, None, None)


def _no_second_order(ctx: Any, *_grads: Any) -> None:
    raise NotImplementedError(
        "oc_attention: gradients must be of first order, got a backward through its backward"
    )


oc_attention_fwd.register_autograd(_backward, setup_context=_setup_context)
oc_attention_bwd.register_autograd(_no_second_order)
register_autocast("oc_attention_fwd")
