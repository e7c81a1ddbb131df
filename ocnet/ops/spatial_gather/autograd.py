# SPDX-License-Identifier: MIT
"""The ops ``ocnet::spatial_gather_fwd`` and ``_bwd``: allocation, fakes, autograd, autocast, back ends."""

from typing import Any, Protocol

import torch
from torch import Tensor

from ocnet.ops._backends import Backends, Support
from ocnet.ops._layout import empty_map, layout_of, tokens
from ocnet.ops._precision import tf32_allowed
from ocnet.ops._registration import register_autocast
from ocnet.ops.spatial_gather import cpu_backend, cuda_backend, reference, triton_backend
from ocnet.ops.spatial_gather.problem import BackwardCall, ForwardCall, Problem


class GatherBackend(Protocol):
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


# As for attention: CPU and GPU back ends refuse each other's tensors.
BACKENDS: Backends[GatherBackend] = Backends(
    "spatial_gather",
    (
        ("cpu", cpu_backend),
        ("triton", triton_backend),
        ("cuda", cuda_backend),
        ("reference", reference),
    ),
)


def _empty_context(features: Tensor, regions: Any) -> Tensor:
    n, c, _, _ = features.shape
    return torch.empty(
        (n, c, regions, 1),
        dtype=features.dtype,
        device=features.device,
        memory_format=layout_of(features),
    )


def _nothing(like: Tensor) -> Tensor:
    return like.new_empty((0,))


def _empty_results(
    features: Tensor, logits: Tensor, keep_residual: bool
) -> tuple[Tensor, Tensor, Tensor]:
    n, regions = logits.shape[:2]
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    lse = torch.empty((n, regions), dtype=wide, device=features.device)
    keep = keep_residual and features.dtype != wide
    residual = _empty_context(features, regions) if keep else _nothing(features)
    return _empty_context(features, regions), lse, residual


def _residual_rows(residual: Tensor) -> Tensor | None:
    return None if residual.dim() == 1 else tokens(residual)


@torch.library.custom_op(
    "ocnet::spatial_gather_fwd",
    mutates_args=(),
    schema="(Tensor features, Tensor logits, float scale, str backend, bool keep_residual)"
    " -> (Tensor, Tensor, Tensor)",
)
def spatial_gather_fwd(
    features: Tensor, logits: Tensor, scale: float, backend: str, keep_residual: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the context, the log-sum-exp ``(N, K)`` of the regions, and the context's residual.

    The residual is what rounding to 16 bits took from the context. The backward needs the unrounded
    context: where the softmax is peaked, the gradients of the logits are small differences of it.
    Without ``keep_residual``, and for wider dtypes, it has no elements.
    """
    chosen = BACKENDS.choose(Problem.of(features, logits), backend)
    out, lse, residual = _empty_results(features, logits, keep_residual)
    if features.shape[0] > 0:
        chosen.forward(
            ForwardCall(
                features=tokens(features),
                logits=tokens(logits),
                scale=scale,
                tf32=tf32_allowed(features),
                out=tokens(out),
                lse=lse,
                residual=_residual_rows(residual),
            )
        )
    return out, lse, residual


@spatial_gather_fwd.register_fake
def _(
    features: Tensor, logits: Tensor, scale: float, backend: str, keep_residual: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_results(features, logits, keep_residual)


@torch.library.custom_op(
    "ocnet::spatial_gather_bwd",
    mutates_args=(),
    schema="(Tensor grad_out, Tensor features, Tensor logits, Tensor out, Tensor lse,"
    " Tensor residual, float scale, str backend, bool need_features, bool need_logits)"
    " -> (Tensor, Tensor)",
)
def spatial_gather_bwd(
    grad_out: Tensor,
    features: Tensor,
    logits: Tensor,
    out: Tensor,
    lse: Tensor,
    residual: Tensor,
    scale: float,
    backend: str,
    need_features: bool,
    need_logits: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of features and logits; those not needed have no elements."""
    chosen = BACKENDS.choose(Problem.of(features, logits), backend)
    grads = _empty_grads(features, logits, need_features, need_logits)
    if features.shape[0] > 0:
        chosen.backward(
            BackwardCall(
                grad_out=tokens(grad_out),
                features=tokens(features),
                logits=tokens(logits),
                out=tokens(out),
                lse=lse,
                residual=_residual_rows(residual),
                scale=scale,
                tf32=tf32_allowed(features),
                grad_features=tokens(grads[0]) if need_features else None,
                grad_logits=tokens(grads[1]) if need_logits else None,
            )
        )
    return grads


def _empty_grads(
    features: Tensor, logits: Tensor, need_features: bool, need_logits: bool
) -> tuple[Tensor, Tensor]:
    def empty(source: Tensor, needed: bool) -> Tensor:
        return empty_map(source, source.shape[1]) if needed else _nothing(source)

    return empty(features, need_features), empty(logits, need_logits)


@spatial_gather_bwd.register_fake
def _(
    grad_out: Tensor,
    features: Tensor,
    logits: Tensor,
    out: Tensor,
    lse: Tensor,
    residual: Tensor,
    scale: float,
    backend: str,
    need_features: bool,
    need_logits: bool,
) -> tuple[Tensor, Tensor]:
    return _empty_grads(features, logits, need_features, need_logits)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, logits, ctx.scale, ctx.backend, _keep_residual = inputs
    out, lse, residual = output
    ctx.mark_non_differentiable(lse, residual)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(features, logits, out, lse, residual)


def _backward(ctx: Any, grad_out: Tensor | None, *_others: Tensor | None) -> tuple[Any, ...]:
    if grad_out is None:
        return None, None, None, None, None
    needed = ctx.needs_input_grad[:2]
    grads = torch.ops.ocnet.spatial_gather_bwd(
        grad_out, *ctx.saved_tensors, ctx.scale, ctx.backend, *needed
    )
    wanted = (grad if need else None for grad, need in zip(grads, needed, strict=True))
    return (*wanted, None, None, None)


def _no_second_order(ctx: Any, *_grads: Any) -> None:
    raise NotImplementedError(
        "spatial_gather: gradients must be of first order, got a backward through its backward"
    )


spatial_gather_fwd.register_autograd(_backward, setup_context=_setup_context)
spatial_gather_bwd.register_autograd(_no_second_order)
register_autocast("spatial_gather_fwd")
