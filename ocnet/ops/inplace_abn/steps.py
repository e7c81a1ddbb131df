# SPDX-License-Identifier: MIT
"""The steps on real tensors: choice of back end, allocation, maps as matrices, vectors as kernels read them.

What the registered ops do (``autograd.py``), and what plain eager calls do without the dispatcher
(``eager.py``).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ocnet.ops._backends import Backends, Support
from ocnet.ops.inplace_abn import cpu_backend, cuda_backend, reference, triton_backend
from ocnet.ops.inplace_abn.layout import as_matrix, empty_like_map, in_rows, wide_vectors
from ocnet.ops.inplace_abn.problem import (
    ACTIVATIONS,
    ApplyCall,
    BackwardCall,
    ForwardCall,
    Problem,
    ReduceCall,
    StatsCall,
    accumulator,
)


class ABNBackend(Protocol):
    """The functions that every back end module of this op has."""

    def supports(self, problem: Problem, /) -> Support:
        """Tell whether the back end takes the call."""
        ...

    def stats(self, call: StatsCall, /) -> None:
        """Write the packed statistics of a map."""
        ...

    def forward(self, call: ForwardCall, /) -> None:
        """Write the output and, in training, the statistics."""
        ...

    def reduce(self, call: ReduceCall, /) -> None:
        """Write the sums of the backward pass."""
        ...

    def apply(self, call: ApplyCall, /) -> None:
        """Write the gradients of the maps from the sums."""
        ...

    def backward(self, call: BackwardCall, /) -> None:
        """Write the gradients that are not ``None``."""
        ...


# As for attention: CPU and GPU back ends refuse each other's tensors. The CUDA kernels keep channels
# that fit on chip, which Triton's cannot.
BACKENDS: Backends[ABNBackend] = Backends(
    "inplace_abn",
    (
        ("cpu", cpu_backend),
        ("cuda", cuda_backend),
        ("triton", triton_backend),
        ("reference", reference),
    ),
)


class Pointwise(NamedTuple):
    """What the point-wise part of a call is told, in the order of the ops' schemas."""

    scale_eps: float
    activation: str
    param: float
    signed: bool
    backend: str

    def codes(self) -> tuple[float, int, float, bool]:
        """Return what the native schemas take."""
        return self.scale_eps, ACTIVATIONS[self.activation], self.param, self.signed


Vectors = tuple[Tensor | None, Tensor | None, Tensor | None]


def _choose(matrix: Tensor, backend: str) -> ABNBackend:
    # Nothing to compute: what is left to do (merging statistics of other ranks) is a few numbers.
    requested = backend if matrix.numel() > 0 else "reference"
    return BACKENDS.choose(Problem.of(matrix), requested)


def empty_vector(x: Tensor, size: Any) -> Tensor:
    """Allocate a vector in the accumulation dtype."""
    return torch.empty((size,), dtype=accumulator(x.dtype), device=x.device)


def stats(x: Tensor, backend: str) -> Tensor:
    """Return ``(2 C + 1,)``: means, sums of squared deviations from them, and the count."""
    packed = empty_vector(x, 2 * x.shape[1] + 1)
    matrix = as_matrix(x, in_rows(x))
    _choose(matrix, backend).stats(StatsCall(matrix, packed))
    return packed


def forward(
    x: Tensor,
    out: Tensor,
    residual: Tensor | None,
    vectors: Vectors,
    packed: Tensor | None,
    running: Sequence[Tensor | None],
    scalars: tuple[bool, float, float],
    pointwise: Pointwise,
    statistics: tuple[Tensor | None, ...],
) -> None:
    """Write ``out``, which may be ``x``, and the statistics: mean, variance, moved running ones.

    ``scalars`` are training, momentum and eps. Moved running statistics may be ``running`` themselves.
    """
    rows, wide = in_rows(x), accumulator(x.dtype)
    matrix = as_matrix(x, rows)
    call = ForwardCall._make(
        (
            matrix,
            None if residual is None else as_matrix(residual, rows),
            *wide_vectors(vectors, wide),
            packed,
            *wide_vectors(running, wide),
            *scalars,
            *pointwise.codes(),
            matrix if out is x else as_matrix(out, rows),
            *statistics,
        )
    )
    _choose(matrix, pointwise.backend).forward(call)


def _matrices(rows: bool, *maps: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else as_matrix(x, rows) for x in maps]


def _empty_maps(out: Tensor, needed: tuple[bool, ...]) -> list[Tensor | None]:
    return [empty_like_map(out) if need else None for need in needed]


def _empty_vectors(out: Tensor, needed: tuple[bool, ...]) -> list[Tensor | None]:
    return [empty_vector(out, out.shape[1]) if need else None for need in needed]


def backward(
    out: Tensor,
    residual: Tensor | None,
    grad_out: Tensor,
    vectors: Vectors,
    var: Tensor,
    training: bool,
    eps: float,
    pointwise: Pointwise,
    needed: tuple[bool, ...],
) -> list[Tensor | None]:
    """Return the gradients of x, residual, weight, bias and slope that are needed."""
    maps, grads = _empty_maps(out, needed[:2]), _empty_vectors(out, needed[2:])
    if out.numel() == 0:
        return [*maps, *(None if grad is None else grad.zero_() for grad in grads)]
    rows, wide = in_rows(out), accumulator(out.dtype)
    matrices = _matrices(rows, out, residual, grad_out, *maps)
    call = BackwardCall._make(
        (
            *matrices[:3],
            *wide_vectors((*vectors, var), wide),
            training,
            eps,
            *pointwise.codes(),
            *matrices[3:],
            *grads,
        )
    )
    _choose(call.out, pointwise.backend).backward(call)
    return [*maps, *grads]


def reduce(
    out: Tensor,
    residual: Tensor | None,
    grad_out: Tensor,
    vectors: Vectors,
    total: Tensor | None,
    pointwise: Pointwise,
    needed: tuple[bool, ...],
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the sums ``(2, C)`` of this rank, and the gradients of weight, bias and slope."""
    sums = empty_vector(out, 2 * out.shape[1]).view(2, -1)
    grads = _empty_vectors(out, needed)
    matrices = _matrices(in_rows(out), out, residual, grad_out)
    known = wide_vectors(vectors, accumulator(out.dtype))
    call = ReduceCall._make((*matrices, *known, total, *pointwise.codes(), sums, *grads))
    _choose(call.out, pointwise.backend).reduce(call)
    return sums, grads


def apply(
    out: Tensor,
    residual: Tensor | None,
    grad_out: Tensor,
    vectors: Vectors,
    var: Tensor,
    sums: Tensor | None,
    total: Tensor | None,
    eps: float,
    pointwise: Pointwise,
    needed: tuple[bool, ...],
) -> list[Tensor | None]:
    """Return the gradients of x and of the residual, from the sums over all ranks."""
    grads = _empty_maps(out, needed)
    matrices = _matrices(in_rows(out), out, residual, grad_out, *grads)
    known = wide_vectors(vectors, accumulator(out.dtype))
    added = None if sums is None else sums.contiguous()
    call = ApplyCall._make(
        (*matrices[:3], *known, var, added, total, eps, *pointwise.codes(), *matrices[3:])
    )
    _choose(call.out, pointwise.backend).apply(call)
    return grads
