# SPDX-License-Identifier: MIT
"""An op of this package by each of its back ends, as forms."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ocnet.engine.workload import Call, Form
from ocnet.ops import _hopper
from ocnet.ops._backends import AUTO, Backends

OURS = "fused"
OVER_INPUT = "inplace"  # the same, its result written over its first argument
# The kernels that the CUDA back end has to choose from, and the number of keys up to which it takes the
# portable ones where it is made to take either.
HOPPER, PORTABLE = "hopper", "portable"
_FEW_KEYS = {HOPPER: 0, PORTABLE: 2**31}
_FEW_KEYS_ITSELF = _hopper.FEW_KEYS
_CUDA = "cuda"


@contextmanager
def _made_to_take(kernels: str) -> Iterator[None]:
    _hopper.FEW_KEYS = _FEW_KEYS[kernels]
    try:
        yield
    finally:
        _left_to_itself()


def _left_to_itself() -> None:
    _hopper.FEW_KEYS = _FEW_KEYS_ITSELF


def _made_to_take_backward(kernels: str, results: Tensor | Sequence[Tensor]) -> None:
    """Make the backward pass of results take them too."""

    def begin(_: object) -> None:
        _hopper.FEW_KEYS = _FEW_KEYS[kernels]
        torch.autograd.Variable._execution_engine.queue_callback(_left_to_itself)  # at its end

    for out in (results,) if isinstance(results, Tensor) else results:
        if out.grad_fn is not None:
            out.grad_fn.register_prehook(begin)


@dataclass(frozen=True)
class Hopper:
    """An op's kernels on Hopper's own instructions.

    Attributes:
        kernels: What the CUDA back end asks.
        keys_of: Returns how many keys a query of a problem sees at most.
    """

    kernels: _hopper.HopperKernels
    keys_of: Callable[[Any], int]

    def refuse(self, problem: Any) -> str | None:
        """Return why the CUDA back end does not take them, or ``None``."""
        return self.kernels.refuse(problem, self.keys_of(problem))


@dataclass(frozen=True)
class Op:
    """An op, and how its back ends see a workload.

    Attributes:
        compute: The op; takes ``backend`` by name.
        backends: Its back ends.
        problem_of: Describes a workload as they take it.
        hopper: Its kernels for Hopper, if it has some.
    """

    compute: Callable[..., Tensor | Sequence[Tensor]]
    backends: Backends[Any]
    problem_of: Callable[[Any], Any]
    hopper: Hopper | None = None

    def forms(self, provider: str) -> list[Form]:
        """Return one form for each back end, of that provider, and for each kind of CUDA kernels.

        The latter come first: they say more of what is measured.
        """
        kinds = [] if self.hopper is None else [HOPPER, PORTABLE]
        of_kinds = [self._form_of_kernels(kind, self.hopper, provider) for kind in kinds]
        return of_kinds + [self._form(name, provider) for name in self.backends.names]

    def taken(self, form: str, workload: Call) -> str | None:
        """Return the back end that a form takes for a workload; ``None`` for forms of others."""
        if not is_ours(form):
            return None
        requested = form.partition(":")[2] or AUTO
        if requested in _FEW_KEYS:
            requested = _CUDA
        return self.backends.explain(self.problem_of(workload), requested).chosen

    def kernels(self, form: str, workload: Call) -> str | None:
        """Return which kernels a form of this package runs; ``None`` where it runs none.

        Two forms with one answer are measured to no other end.
        """
        taken = self.taken(form, workload)
        if taken != _CUDA or self.hopper is None:
            return taken
        kind = form.partition(":")[2]
        if kind not in _FEW_KEYS:
            refusal = self.hopper.refuse(self.problem_of(workload))
            kind = HOPPER if refusal is None else PORTABLE
        return f"{taken}, {kind}"

    def _form_of_kernels(self, kind: str, hopper: Hopper | None, provider: str) -> Form:
        def compute(*tensors: Tensor, **options: Any) -> Tensor | Sequence[Tensor]:
            with _made_to_take(kind):
                results = self.compute(*tensors, **options, backend=_CUDA)
            _made_to_take_backward(kind, results)
            return results

        def refuses(workload: Call) -> str:
            problem = self.problem_of(workload)
            explanation = self.backends.explain(problem, _CUDA)
            if explanation.chosen != _CUDA:
                return explanation.reasons[_CUDA]
            if kind == PORTABLE or hopper is None:
                return ""
            with _made_to_take(kind):
                return hopper.refuse(problem) or ""

        return Form(f"{OURS}:{kind}", compute, refuses, provider=provider)

    def _form(self, name: str, provider: str) -> Form:
        def compute(*tensors: Tensor, **options: Any) -> Tensor | Sequence[Tensor]:
            return self.compute(*tensors, **options, backend=name)

        def refuses(workload: Call) -> str:
            explanation = self.backends.explain(self.problem_of(workload), name)
            return "" if explanation.chosen == name else explanation.reasons[name]

        return Form(f"{OURS}:{name}", compute, refuses, provider=provider)


def is_ours(form: str) -> bool:
    """Tell whether a form is an op of this package."""
    return form.partition(":")[0] in (OURS, OVER_INPUT)
