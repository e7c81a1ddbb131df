# SPDX-License-Identifier: MIT
"""The ways that are compared: the op by each of its back ends, and what a user would write without it.

Those of attention are here, and which table a workload takes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import gather_baselines
from benchmarks.compiled import CompiledFresh, compile_refusal
from ocnet.engine.gather_workload import GatherWorkload
from ocnet.engine.workload import FORMS as INSTALLED
from ocnet.engine.workload import Call, Form, Workload
from ocnet.ops import oc_attention
from ocnet.ops.oc_attention.autograd import BACKENDS
from ocnet.ops.oc_attention.problem import Problem
from ocnet.ops.oc_attention.reference import naive_attention
from ocnet.ops.spatial_gather.autograd import BACKENDS as GATHER_BACKENDS

_HERE = "benchmarks.baselines"


def _backend_refusal(name: str) -> Callable[[Workload], str]:
    """Return a check that hands on the sentence with which a back end refuses a call."""

    def refuses(workload: Workload) -> str:
        explanation = BACKENDS.explain(_problem(workload), name)
        return "" if explanation.chosen == name else explanation.reasons[name]

    return refuses


def forms_of(workload: Call) -> dict[str, Form]:
    """Return the ways to compute a workload, by name."""
    return gather_baselines.FORMS if isinstance(workload, GatherWorkload) else FORMS


def backend_of(form: str, workload: Call) -> str | None:
    """Return the back end that a form of this package takes for a workload; ``None`` for others."""
    if form not in OURS:
        return None
    requested = form.partition(":")[2] or "auto"
    if isinstance(workload, GatherWorkload):
        problem = gather_baselines.problem_of(workload)
        return GATHER_BACKENDS.explain(problem, requested).chosen
    assert isinstance(workload, Workload)
    return BACKENDS.explain(_problem(workload), requested).chosen


def _problem(workload: Workload) -> Problem:
    return Problem(
        device=torch.device(workload.device),
        dtype=workload.torch_dtype,
        N=workload.N,
        L=workload.L,
        S=workload.S,
        E=workload.E,
        Ev=workload.Ev,
        shared=workload.shared,
    )


def _backend_form(name: str) -> Form:
    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return oc_attention(query, key, value, backend=name)

    return Form(f"fused:{name}", attention, _backend_refusal(name), provider=_HERE)


def _flex(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    n, _, h, w = query.shape
    tokens = query.flatten(2).mT.contiguous()[:, None]
    keys = tokens if key is query else key.flatten(2).mT.contiguous()[:, None]
    values = value.flatten(2).mT.contiguous()[:, None]
    out = flex_attention(tokens, keys, values)
    if not isinstance(out, Tensor):
        raise TypeError(f"flex_attention: result must be a tensor, got {type(out)}")
    return out[:, 0].mT.reshape(n, value.shape[1], h, w)


def _flex_refusal(workload: Workload) -> str:
    if workload.device == "cpu":
        return "FlexAttention has no backward pass on the CPU"
    if workload.dtype == "float64":
        return "FlexAttention takes no float64"
    return ""


FORMS = {
    form.name: form
    for form in (
        *INSTALLED.values(),
        *(_backend_form(name) for name in BACKENDS.names),
        Form(
            "compile",
            CompiledFresh(naive_attention),
            compile_refusal,
            builds_matrix=lambda workload: True,
            provider=_HERE,
        ),
        Form("flex", CompiledFresh(_flex), _flex_refusal, provider=_HERE),
    )
}
OURS = ("fused", *(f"fused:{name}" for name in BACKENDS.names))
