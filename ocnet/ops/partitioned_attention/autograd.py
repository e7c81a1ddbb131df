# SPDX-License-Identifier: MIT
"""The ops ``ocnet::partitioned_attention_fwd`` and ``_bwd``: allocation, fakes, autograd, back ends.

Both are functional, and take lists with one tensor for each stage. Without keys, the queries' maps are
the keys too, and the backward returns one gradient for both roles.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from ocnet.ops._backends import Backends, Support
from ocnet.ops._layout import tokens
from ocnet.ops._partition import decode
from ocnet.ops._precision import tf32_allowed
from ocnet.ops._registration import register_autocast
from ocnet.ops.oc_attention.autograd import empty_like_source, empty_results, scale_of
from ocnet.ops.partitioned_attention import (
    cpu_backend,
    cuda_backend,
    reference,
    triton_backend,
)
from ocnet.ops.partitioned_attention.problem import BackwardCall, ForwardCall, Problem


class PartitionBackend(Protocol):
    """The functions that every back end module of this op has."""

    def supports(self, problem: Problem, /) -> Support:
        """Tell whether the back end takes the call."""
        ...

    def forward(self, call: ForwardCall, /) -> None:
        """Write the outputs of the call."""
        ...

    def backward(self, call: BackwardCall, /) -> None:
        """Write the gradients that are wanted."""
        ...


# The order is that of oc_attention, for its reasons.
BACKENDS: Backends[PartitionBackend] = Backends(
    "partitioned_attention",
    (
        ("cpu", cpu_backend),
        ("triton", triton_backend),
        ("cuda", cuda_backend),
        ("reference", reference),
    ),
    first=[("cuda", cuda_backend.is_first)],
)


def _empty_outputs(
    query: Sequence[Tensor], value: Sequence[Tensor], keep_residual: bool
) -> list[Tensor]:
    """Return all contexts, then all log-sum-exps, then all residuals, where they are kept."""
    stages = [empty_results(q, v, keep_residual) for q, v in zip(query, value, strict=True)]
    out, lse, residual = (list(each) for each in zip(*stages, strict=True))
    return [*out, *lse, *(residual if residual[0].dim() > 1 else [])]


def _thirds(results: Sequence[Tensor], stages: int) -> tuple[list[Tensor], ...]:
    """Split what ``_empty_outputs`` returns."""
    return tuple(list(results[i * stages : (i + 1) * stages]) for i in range(3))


def _pick(tensors: Sequence[Tensor], stages: Sequence[int]) -> list[Tensor]:
    return [tensors[stage] for stage in stages] if tensors else []


def _rows(maps: Sequence[Tensor], stages: Sequence[int]) -> list[Tensor]:
    return [tokens(pixels) for pixels in _pick(maps, stages)]


def _live(query: Sequence[Tensor]) -> list[int]:
    """Return the stages that have images."""
    return [stage for stage, pixels in enumerate(query) if pixels.shape[0] > 0]


def _read(
    query: Sequence[Tensor],
    key: Sequence[Tensor],
    value: Sequence[Tensor],
    problem: Problem,
    scale: float | None,
) -> dict[str, Any]:
    """Return what the calls of both directions read, of the stages that have images."""
    live = _live(query)
    return {
        "query": _rows(query, live),
        "key": _rows(key, live),
        "value": _rows(value, live),
        "partition": [number for stage in live for number in problem.axes[stage].flat()],
        "scale": scale_of(query[0], scale),
        "tf32": tf32_allowed(query[0]),
    }


@torch.library.custom_op(
    "ocnet::partitioned_attention_fwd",
    mutates_args=(),
    schema="(Tensor[] query, Tensor[] key, Tensor[] value, int[] partition, float? scale,"
    " str backend, bool keep_residual) -> Tensor[]",
)
def partitioned_attention_fwd(
    query: Sequence[Tensor],
    key: Sequence[Tensor],
    value: Sequence[Tensor],
    partition: Sequence[int],
    scale: float | None,
    backend: str,
    keep_residual: bool,
) -> list[Tensor]:
    """Return the context maps of all stages, their log-sum-exps ``(N, H * W)``, and their residuals.

    Residuals are as those of ``oc_attention_fwd``, and absent where that one's have no elements.
    """
    problem = Problem.of(query, key, value, decode(partition))
    chosen = BACKENDS.choose(problem, backend)
    results = _empty_outputs(query, value, keep_residual)
    live = _live(query)
    if live:
        out, lse, residual = _thirds(results, len(query))
        chosen.forward(
            ForwardCall(
                **_read(query, key, value, problem, scale),
                out=_rows(out, live),
                lse=_pick(lse, live),
                residual=_rows(residual, live),
            )
        )
    return results


@partitioned_attention_fwd.register_fake
def _(
    query: Sequence[Tensor],
    key: Sequence[Tensor],
    value: Sequence[Tensor],
    partition: Sequence[int],
    scale: float | None,
    backend: str,
    keep_residual: bool,
) -> list[Tensor]:
    return _empty_outputs(query, value, keep_residual)


@torch.library.custom_op(
    "ocnet::partitioned_attention_bwd",
    mutates_args=(),
    schema="(Tensor[] grad_out, Tensor[] query, Tensor[] key, Tensor[] value, Tensor[] results,"
    " int[] partition, float? scale, str backend, bool need_query, bool need_key, bool need_value)"
    " -> Tensor[]",
)
def partitioned_attention_bwd(
    grad_out: Sequence[Tensor],
    query: Sequence[Tensor],
    key: Sequence[Tensor],
    value: Sequence[Tensor],
    results: Sequence[Tensor],
    partition: Sequence[int],
    scale: float | None,
    backend: str,
    need_query: bool,
    need_key: bool,
    need_value: bool,
) -> list[Tensor]:
    """Return the gradients of all queries, then of all keys, then of all values, as far as needed."""
    problem = Problem.of(query, key, value, decode(partition))
    chosen = BACKENDS.choose(problem, backend, backward=True)
    sources = ((query, need_query), (key, need_key), (value, need_value))
    grads = [_empty_grads(maps) if needed else [] for maps, needed in sources]
    live = _live(query)
    if live:
        out, lse, residual = _thirds(results, len(query))
        chosen.backward(
            BackwardCall(
                grad_out=_rows(grad_out, live),
                **_read(query, key, value, problem, scale),
                out=_rows(out, live),
                lse=_pick(lse, live),
                residual=_rows(residual, live),
                grad_query=_rows(grads[0], live),
                grad_key=_rows(grads[1], live),
                grad_value=_rows(grads[2], live),
            )
        )
    return [grad for each in grads for grad in each]


def _empty_grads(maps: Sequence[Tensor]) -> list[Tensor]:
    return [empty_like_source(pixels) for pixels in maps]


@partitioned_attention_bwd.register_fake
def _(
    grad_out: Sequence[Tensor],
    query: Sequence[Tensor],
    key: Sequence[Tensor],
    value: Sequence[Tensor],
    results: Sequence[Tensor],
    partition: Sequence[int],
    scale: float | None,
    backend: str,
    need_query: bool,
    need_key: bool,
    need_value: bool,
) -> list[Tensor]:
    sources = ((query, need_query), (key, need_key), (value, need_value))
    return [grad for maps, needed in sources if needed for grad in _empty_grads(maps)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    query, key, value, ctx.partition, ctx.scale, ctx.backend, _keep_residual = inputs
    ctx.stages, ctx.shared = len(query), len(key) == 0
    ctx.mark_non_differentiable(*output[len(query) :])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*query, *key, *value, *output)


def _backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    stages = ctx.stages
    # Once: under activation checkpointing, looking computes them again.
    saved = ctx.saved_tensors
    of_key = 0 if ctx.shared else stages
    ends = (0, stages, stages + of_key, 2 * stages + of_key)
    query, key, value = (saved[i:j] for i, j in pairwise(ends))
    results = saved[ends[-1] :]
    given = grads[:stages]
    nothing = tuple([None] * len(maps) for maps in (query, key, value))
    if all(grad is None for grad in given):
        return (*nothing, None, None, None, None)
    # A stage whose result is not used gets a gradient of zeros.
    grad_out = [
        torch.zeros_like(out) if grad is None else grad
        for grad, out in zip(given, results, strict=False)
    ]
    needed = [any(needs) for needs in ctx.needs_input_grad[:3]]
    computed = torch.ops.ocnet.partitioned_attention_bwd(
        grad_out, query, key, value, results, ctx.partition, ctx.scale, ctx.backend, *needed
    )
    rest = iter(computed)
    wanted = [
        [next(rest) if any_needed else None for _ in maps]
        for maps, any_needed in zip((query, key, value), needed, strict=True)
    ]
    return (*wanted, None, None, None, None)


def _no_second_order(ctx: Any, *_grads: Any) -> None:
    raise NotImplementedError(
        "partitioned_attention: gradients must be of first order, got a backward through its backward"
    )


partitioned_attention_fwd.register_autograd(_backward, setup_context=_setup_context)
partitioned_attention_bwd.register_autograd(_no_second_order)
register_autocast("partitioned_attention_fwd")
