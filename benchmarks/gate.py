# SPDX-License-Identifier: MIT
"""Is the result right? Asked of every form before it is timed: a wrong kernel gets no numbers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ocnet.engine.abn_workload import SLOPE, ABNWorkload, normalised
from ocnet.engine.gather_workload import GatherWorkload
from ocnet.engine.partition_workload import PartitionWorkload, attend, stages_of
from ocnet.engine.workload import BACKWARD, Call, Form
from ocnet.ops import Partition, oc_attention, spatial_gather
from ocnet.ops.inplace_abn.reference import naive_inplace_abn
from ocnet.ops.oc_attention.reference import naive_attention
from ocnet.ops.partitioned_attention.reference import naive_partitioned_attention
from ocnet.ops.spatial_gather.reference import naive_gather

_Results = Tensor | Sequence[Tensor]
# Arguments of an activation that are no further from 0, where most are near 1, may be on either side
# of it in float32.
_NEAR = 1e-5


@dataclass(frozen=True)
class Verdict:
    """How far the worst of output and gradients is from float64.

    Attributes:
        ok: Whether every error is within its bound.
        worst: Name of the tensor closest to its bound, or furthest beyond it.
        error: Its relative error in the Frobenius norm.
        bound: Its bound.
    """

    ok: bool
    worst: str
    error: float
    bound: float


@dataclass(frozen=True)
class Expected:
    """What a workload's results must be, and how close; made once, for all forms.

    Attributes:
        workload: The call.
        inputs: The arguments, and then the gradients of the outputs.
        exact: Outputs and gradients in float64, by name.
        bounds: Largest relative error allowed, by name: twice that of the plain formula in the same
            dtype, measured on the first image (on all where they depend on each other), plus four
            units in the last place.
    """

    workload: Call
    inputs: tuple[Tensor, ...]
    exact: dict[str, Tensor]
    bounds: dict[str, float]

    @classmethod
    def of(cls, workload: Call) -> "Expected":
        """Compute it; float64 runs in blocks, so no case is too large for it."""
        inputs = workload.inputs()
        if isinstance(workload, ABNWorkload):
            inputs = _decided(workload, inputs)
        op, naive = _formulas(workload)
        reference = Form("reference", partial(op, backend="reference"))
        exact = _results(reference, workload, inputs, lambda tensor: tensor.double())
        found = cls(workload, inputs, exact, {})
        return replace(found, bounds=found.bounds_by(Form("naive", naive)))

    def bounds_by(self, eager: Form) -> dict[str, float]:
        """Return the bounds that a plain formula sets, of the results that it has."""
        part = _all_of if isinstance(self.workload, ABNWorkload) else _first_of
        given = _results(eager, self.workload, self.inputs, part)
        unit = torch.finfo(self.workload.torch_dtype).eps
        return {
            name: 2 * _relative(result, part(self.exact[name])) + 4 * unit
            for name, result in given.items()
        }


def check(form: Form, expected: Expected) -> Verdict:
    """Compare outputs and gradients of a form with float64."""
    bounds = expected.bounds
    if form.formula is not None:
        bounds = expected.bounds_by(replace(form, compute=form.formula))
    given = _results(form, expected.workload, expected.inputs, _all_of)
    verdicts = []
    for name, result in given.items():
        error, bound = _relative(result, expected.exact[name]), bounds[name]
        verdicts.append(Verdict(error <= bound, name, error, bound))
    return max(verdicts, key=lambda verdict: verdict.error / verdict.bound)


def _formulas(workload: Call) -> tuple[Callable[..., _Results], Callable[..., _Results]]:
    """Return the op of a workload, whose back end ``reference`` sums in float64, and its formula."""
    if isinstance(workload, GatherWorkload):
        return spatial_gather, naive_gather
    if isinstance(workload, PartitionWorkload):
        return attend, _naive_groups
    if isinstance(workload, ABNWorkload):
        return normalised, _naive_abn
    return oc_attention, naive_attention


def _naive_groups(*tensors: Tensor, partitions: Sequence[Partition]) -> list[Tensor]:
    return [
        naive_partitioned_attention(*stage, partition)
        for stage, partition in zip(stages_of(tensors), partitions, strict=True)
    ]


def _naive_abn(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, **statistics: Any
) -> Tensor:
    return naive_inplace_abn(
        x, weight, bias, **statistics, activation_param=SLOPE, residual=residual
    )


def _decided(workload: ABNWorkload, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the inputs, without a gradient where rounding decides the activation's branch.

    The derivative jumps there: one number of millions on the other side is an error beyond all bounds.
    """
    *arguments, grad_out = inputs
    with torch.no_grad():
        exact = normalised(
            *(tensor.double() for tensor in arguments), backend="reference", **workload.options
        )
    undecided = (exact > -_NEAR * SLOPE) & (exact < _NEAR)
    return (*arguments, grad_out.masked_fill(undecided, 0))


def _first_of(images: Tensor) -> Tensor:
    return images[:1]


def _all_of(images: Tensor) -> Tensor:
    return images


def _results(
    form: Form,
    workload: Call,
    inputs: tuple[Tensor, ...],
    change: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return outputs and gradients by name, for changed inputs; a shared key stays shared.

    Without gradients where the form has none.
    """
    names = workload.arguments
    arguments, grad_outs = inputs[: len(names)], inputs[len(names) :]
    trains = BACKWARD in form.phases
    leaves: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in zip(names, arguments, strict=True):
        if id(tensor) not in leaves:
            leaf = change(tensor).detach().requires_grad_(trains)
            leaves[id(tensor)] = f"grad_{name}", leaf
    outs = form.run(workload, form.prepare(*(leaves[id(tensor)][1] for tensor in arguments)))
    out_names = ["out"] if len(outs) == 1 else [f"out_{i}" for i in range(len(outs))]
    found = dict(zip(out_names, outs, strict=True))
    if trains:
        grad_names, wanted = zip(*leaves.values(), strict=True)
        given = [change(grad).to(out.dtype) for grad, out in zip(grad_outs, outs, strict=True)]
        found |= zip(grad_names, torch.autograd.grad(outs, wanted, given), strict=True)
    return {name: tensor.detach() for name, tensor in found.items()}


def _relative(given: Tensor, exact: Tensor) -> float:
    """Return the relative error in the Frobenius norm; infinite for a result that is not finite."""
    error = float((given.double() - exact).norm() / exact.norm())
    return error if math.isfinite(error) else math.inf
