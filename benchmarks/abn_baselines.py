# SPDX-License-Identifier: MIT
"""The ways to normalise and activate that are compared: the op, over its input too, and without it."""

import importlib
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.backends import OVER_INPUT, Op
from benchmarks.compiled import CompiledFresh
from ocnet.engine.abn_workload import FORMS as INSTALLED
from ocnet.engine.abn_workload import SLOPE, ABNWorkload, normalised
from ocnet.engine.workload import Form
from ocnet.ops.inplace_abn.problem import Problem
from ocnet.ops.inplace_abn.steps import BACKENDS

_HERE = "benchmarks.abn_baselines"
_MOMENTUM, _EPS = 0.1, 1e-5  # defaults of the op, of torch and of the package


def _problem(workload: ABNWorkload) -> Problem:
    device, dtype = torch.device(workload.device), workload.torch_dtype
    n, c, length = workload.N, workload.C, workload.L
    if workload.layout == "channels_last":
        return Problem(device, dtype, 1, c, n * length, rows=True)
    return Problem(device, dtype, n, c, length, rows=False)


OP = Op(normalised, BACKENDS, _problem)


def _over_copy(x: Tensor, *others: Tensor) -> Sequence[Tensor]:
    """Hand over a map that nobody else has, as a convolution does."""
    return (x.clone(), *others)


def _with_scale(x: Tensor, weight: Tensor, *others: Tensor) -> Sequence[Tensor]:
    """Make the op's scale of the weights, which are positive: plain batch norm has no such step."""
    return (x, weight + _EPS, *others)


def _naive(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    running_mean: Tensor,
    running_var: Tensor,
) -> Tensor:
    y = F.batch_norm(x, running_mean, running_var, scale, bias, True, _MOMENTUM, _EPS)
    if residual is not None:
        y += residual
    return F.leaky_relu_(y, SLOPE)


@lru_cache(maxsize=1)
def _package() -> tuple[Any, str]:
    """Return the function of the paper's package, or ``None`` and why it cannot be imported."""
    try:
        return importlib.import_module("inplace_abn.functions").inplace_abn, ""
    except (ImportError, OSError) as error:  # a build for another torch is an OSError, at times
        return None, f"the package inplace_abn cannot be imported: {error}"


def _by_package(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, **statistics: Tensor
) -> Tensor:
    """Add a residual, which the package does not know, to a map that is normalised in place."""
    function, _ = _package()
    activation = "leaky_relu" if residual is None else "identity"
    y: Tensor = function(
        x, weight, bias, **statistics, activation=activation, activation_param=SLOPE
    )
    return y if residual is None else F.leaky_relu_(y + residual, SLOPE)


def _package_refusal(workload: ABNWorkload) -> str:
    _, reason = _package()
    if reason:
        return reason
    kinds = ["float32", "float64", *(["float16"] if workload.device == "cuda" else [])]
    if workload.dtype not in kinds:
        return f"the package inplace_abn has no {workload.dtype} on {workload.device}"
    return ""


FORMS = {
    form.name: form
    for form in (
        *INSTALLED.values(),
        *OP.forms(_HERE),
        Form(OVER_INPUT, partial(normalised, inplace=True), prepare=_over_copy, provider=_HERE),
        Form("naive", _naive, prepare=_with_scale, provider=_HERE),
        Form("compile", CompiledFresh(_naive), prepare=_with_scale, provider=_HERE),
        Form(
            "compile-budget",
            CompiledFresh(_naive, activation_memory_budget=0.5),
            prepare=_with_scale,
            provider=_HERE,
        ),
        Form("inplace-abn", _by_package, _package_refusal, prepare=_over_copy, provider=_HERE),
    )
}
