# SPDX-License-Identifier: MIT
"""The ways to gather that are compared: the op by each of its back ends, and the plain formula."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.compiled import CompiledFresh, compile_refusal
from ocnet.engine.gather_workload import FORMS as INSTALLED
from ocnet.engine.gather_workload import GatherWorkload
from ocnet.engine.workload import Form
from ocnet.ops import spatial_gather
from ocnet.ops.spatial_gather.autograd import BACKENDS
from ocnet.ops.spatial_gather.problem import Problem
from ocnet.ops.spatial_gather.reference import naive_gather

_HERE = "benchmarks.gather_baselines"


def problem_of(workload: GatherWorkload) -> Problem:
    """Return a workload as back ends see it."""
    device = torch.device(workload.device)
    return Problem(device, workload.torch_dtype, workload.N, workload.L, workload.C, workload.K)


def _backend_refusal(name: str) -> Callable[[GatherWorkload], str]:
    """Return a check that hands on the sentence with which a back end refuses a call."""

    def refuses(workload: GatherWorkload) -> str:
        explanation = BACKENDS.explain(problem_of(workload), name)
        return "" if explanation.chosen == name else explanation.reasons[name]

    return refuses


def _backend_form(name: str) -> Form:
    def gather(features: Tensor, logits: Tensor) -> Tensor:
        return spatial_gather(features, logits, backend=name)

    return Form(f"fused:{name}", gather, _backend_refusal(name), provider=_HERE)


FORMS = {
    form.name: form
    for form in (
        *INSTALLED.values(),
        *(_backend_form(name) for name in BACKENDS.names),
        Form(
            "compile",
            CompiledFresh(naive_gather),
            compile_refusal,
            builds_matrix=lambda workload: True,
            provider=_HERE,
        ),
    )
}
