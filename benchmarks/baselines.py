# SPDX-License-Identifier: MIT
"""The ways that are compared: the op by each of its back ends, and what a user would write without it.

Those of attention are here, and which table a workload takes.
"""

from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from benchmarks import abn_baselines, gather_baselines, partition_baselines, sdpa_baselines
from benchmarks.backends import OURS, Hopper, Op
from benchmarks.compiled import CompiledFresh, compile_refusal, flex_refusal
from ocnet.engine.abn_workload import ABNWorkload
from ocnet.engine.gather_workload import GatherWorkload
from ocnet.engine.partition_workload import PartitionWorkload
from ocnet.engine.workload import FORMS as INSTALLED
from ocnet.engine.workload import FORWARD, Call, Form, Workload
from ocnet.ops import oc_attention
from ocnet.ops.oc_attention import cuda_backend, float8
from ocnet.ops.oc_attention.autograd import BACKENDS
from ocnet.ops.oc_attention.problem import Problem
from ocnet.ops.oc_attention.reference import naive_attention

_HERE = "benchmarks.baselines"


_OTHERS: dict[type[Call], tuple[dict[str, Form], Op]] = {
    GatherWorkload: (gather_baselines.FORMS, gather_baselines.OP),
    PartitionWorkload: (partition_baselines.FORMS, partition_baselines.OP),
    ABNWorkload: (abn_baselines.FORMS, abn_baselines.OP),
}


def forms_of(workload: Call) -> dict[str, Form]:
    """Return the ways to compute a workload, by name."""
    return _OTHERS.get(type(workload), (FORMS, OP))[0]


def backend_of(form: str, workload: Call) -> str | None:
    """Return the back end that a form of this package takes for a workload; ``None`` for others."""
    op, name = _known_to(form, workload)
    return op.taken(name, workload)


def kernels_of(form: str, workload: Call) -> str | None:
    """Return which kernels a form of this package runs for a workload; ``None`` for others."""
    op, name = _known_to(form, workload)
    return op.kernels(name, workload)


def _known_to(form: str, workload: Call) -> tuple[Op, str]:
    """Return the op of a form, and the form's name there."""
    if form == _FLOAT8.name:
        return _FLOAT8_OP, _OF_CUDA
    return _OTHERS.get(type(workload), (FORMS, OP))[1], form


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


OP = Op(
    oc_attention, BACKENDS, _problem, Hopper(cuda_backend._HOPPER, lambda problem: int(problem.S))
)

_OF_CUDA = f"{OURS}:cuda"
_IN_8_BITS = partial(oc_attention, fp8=True)
_FLOAT8_OP = Op(_IN_8_BITS, float8.BACKENDS, _problem)
_FLOAT8 = replace(
    next(form for form in _FLOAT8_OP.forms(_HERE) if form.name == _OF_CUDA),
    name=f"{OURS}:fp8",
    phases=(FORWARD,),
    formula=partial(_IN_8_BITS, backend="reference"),
)


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


FORMS = {
    form.name: form
    for form in (
        *INSTALLED.values(),
        *OP.forms(_HERE),
        _FLOAT8,
        *sdpa_baselines.FORMS.values(),
        Form(
            "compile",
            CompiledFresh(naive_attention),
            compile_refusal,
            builds_matrix=lambda workload: True,
            provider=_HERE,
        ),
        Form("flex", CompiledFresh(_flex), flex_refusal, provider=_HERE),
    )
}
# Of every op, each once.
NAMES = tuple(dict.fromkeys(chain(FORMS, *(forms for forms, _ in _OTHERS.values()))))
