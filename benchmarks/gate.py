# SPDX-License-Identifier: MIT
"""Is the result right? Asked of every form before it is timed: a wrong kernel gets no numbers."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ocnet.engine.workload import Attention, Form, Workload
from ocnet.ops import oc_attention
from ocnet.ops.oc_attention.reference import naive_attention


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
        inputs: Query, key, value and the gradient of the output.
        exact: Output and gradients in float64, by name.
        bounds: Largest relative error allowed, by name: twice that of the plain formula in the same
            dtype, measured on the first image, plus four units in the last place.
    """

    inputs: tuple[Tensor, Tensor, Tensor, Tensor]
    exact: dict[str, Tensor]
    bounds: dict[str, float]

    @classmethod
    def of(cls, workload: Workload) -> "Expected":
        """Compute it; float64 runs in row blocks, so no case is too large for it."""
        inputs = workload.inputs()
        exact = _results(_exact, inputs, lambda tensor: tensor.double())
        eager = _results(naive_attention, inputs, lambda tensor: tensor[:1])
        unit = torch.finfo(workload.torch_dtype).eps
        bounds = {
            name: 2 * _relative(eager[name], wanted[:1]) + 4 * unit
            for name, wanted in exact.items()
        }
        return cls(inputs, exact, bounds)


def check(form: Form, expected: Expected) -> Verdict:
    """Compare output and gradients of a form with float64."""
    given = _results(form.attention, expected.inputs, lambda tensor: tensor)
    verdicts = []
    for name, wanted in expected.exact.items():
        error, bound = _relative(given[name], wanted), expected.bounds[name]
        verdicts.append(Verdict(error <= bound, name, error, bound))
    return max(verdicts, key=lambda verdict: verdict.error / verdict.bound)


def _exact(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return oc_attention(query, key, value, backend="reference")


def _results(
    attention: Attention,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    change: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return output and gradients by name, for changed inputs; a shared key stays shared."""
    query, key, value, grad_out = inputs
    leaves = {"grad_query": change(query).detach().requires_grad_()}
    if key is not query:
        leaves["grad_key"] = change(key).detach().requires_grad_()
    leaves["grad_value"] = change(value).detach().requires_grad_()
    out = attention(
        leaves["grad_query"], leaves.get("grad_key", leaves["grad_query"]), leaves["grad_value"]
    )
    grads = torch.autograd.grad(out, list(leaves.values()), change(grad_out).to(out.dtype))
    return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


def _relative(given: Tensor, exact: Tensor) -> float:
    """Return the relative error in the Frobenius norm; infinite for a result that is not finite."""
    error = float((given.double() - exact).norm() / exact.norm())
    return error if math.isfinite(error) else math.inf
