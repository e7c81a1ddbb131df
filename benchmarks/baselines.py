# SPDX-License-Identifier: MIT
"""The ways that are compared: the op by each of its back ends, and what a user would write without it."""

from collections.abc import Callable

import torch
from torch import Tensor

from ocnet.engine.workload import FORMS as INSTALLED
from ocnet.engine.workload import Form, Workload
from ocnet.ops import oc_attention
from ocnet.ops.oc_attention.autograd import BACKENDS
from ocnet.ops.oc_attention.problem import Problem
from ocnet.ops.oc_attention.reference import naive_attention

_HERE = "benchmarks.baselines"


def _backend_refusal(name: str) -> Callable[[Workload], str]:
    """Return a check that hands on the sentence with which a back end refuses a call."""

    def refuses(workload: Workload) -> str:
        explanation = BACKENDS.explain(_problem(workload), name)
        return "" if explanation.chosen == name else explanation.reasons[name]

    return refuses


def backend_of(form: str, workload: Workload) -> str | None:
    """Return the back end that a form of this package takes for a workload; ``None`` for others."""
    if form not in OURS:
        return None
    return BACKENDS.explain(_problem(workload), form.partition(":")[2] or "auto").chosen


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


class _CompiledFresh:
    """A function compiled anew for each workload, so that no limit on recompilations is met.

    Args:
        function: Takes query, key and value maps.
    """

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        self._function = function
        self._compiled = function
        self._key: object = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key_now = (query.shape, key.shape, value.shape, query.dtype, query.stride())
        if key_now != self._key:
            torch.compiler.reset()
            self._compiled = torch.compile(self._function, dynamic=False)
            self._key = key_now
        return self._compiled(query, key, value)


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


def _compile_refusal(workload: Workload) -> str:
    if workload.device == "cpu" and workload.dtype != "float32":
        return "on the CPU the compiled form is compared in float32 only"
    return ""


FORMS = {
    form.name: form
    for form in (
        *INSTALLED.values(),
        *(_backend_form(name) for name in BACKENDS.names),
        Form(
            "compile",
            _CompiledFresh(naive_attention),
            _compile_refusal,
            builds_matrix=lambda workload: True,
            provider=_HERE,
        ),
        Form("flex", _CompiledFresh(_flex), _flex_refusal, provider=_HERE),
    )
}
OURS = ("fused", *(f"fused:{name}" for name in BACKENDS.names))
