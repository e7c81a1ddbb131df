# SPDX-License-Identifier: MIT
"""An op of this package by each of its back ends, as forms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ocnet.engine.workload import Call, Form
from ocnet.ops._backends import AUTO, Backends

OURS = "fused"
OVER_INPUT = "inplace"  # the same, its result written over its first argument


@dataclass(frozen=True)
class Op:
    """An op, and how its back ends see a workload.

    Attributes:
        compute: The op; takes ``backend`` by name.
        backends: Its back ends.
        problem_of: Describes a workload as they take it.
    """

    compute: Callable[..., Tensor | Sequence[Tensor]]
    backends: Backends[Any]
    problem_of: Callable[[Any], Any]

    def forms(self, provider: str) -> list[Form]:
        """Return one form for each back end, of that provider."""
        return [self._form(name, provider) for name in self.backends.names]

    def taken(self, form: str, workload: Call) -> str | None:
        """Return the back end that a form takes for a workload; ``None`` for forms of others."""
        if not is_ours(form):
            return None
        requested = form.partition(":")[2] or AUTO
        return self.backends.explain(self.problem_of(workload), requested).chosen

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
