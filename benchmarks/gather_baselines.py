# SPDX-License-Identifier: MIT
"""The ways to gather that are compared: the op by each of its back ends, and the plain formula."""

import torch

from benchmarks.backends import Op
from benchmarks.compiled import CompiledFresh, compile_refusal
from ocnet.engine.gather_workload import FORMS as INSTALLED
from ocnet.engine.gather_workload import GatherWorkload
from ocnet.engine.workload import Form
from ocnet.ops import spatial_gather
from ocnet.ops.spatial_gather.autograd import BACKENDS
from ocnet.ops.spatial_gather.problem import Problem
from ocnet.ops.spatial_gather.reference import naive_gather

_HERE = "benchmarks.gather_baselines"


def _problem(workload: GatherWorkload) -> Problem:
    device = torch.device(workload.device)
    return Problem(device, workload.torch_dtype, workload.N, workload.L, workload.C, workload.K)


OP = Op(spatial_gather, BACKENDS, _problem)
FORMS = {
    form.name: form
    for form in (
        *INSTALLED.values(),
        *OP.forms(_HERE),
        Form(
            "compile",
            CompiledFresh(naive_gather),
            compile_refusal,
            builds_matrix=lambda workload: True,
            provider=_HERE,
        ),
    )
}
