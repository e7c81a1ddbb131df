# SPDX-License-Identifier: MIT
"""Back ends of an op: what one is, which is taken, and why the others are not."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch

AUTO = "auto"

P_contra = TypeVar("P_contra", contravariant=True)
B = TypeVar("B", bound="SupportsCheck[Any]")


class Support(NamedTuple):
    """Whether a back end takes a call, and the sentence that says why not, or which kernels it takes.

    ``missing_build`` marks a refusal that a different build or install would lift.
    """

    ok: bool
    reason: str
    missing_build: bool = False


SUPPORTED = Support(True, "")


def refuse_tensors(
    device: torch.device, dtype: torch.dtype, device_type: str, dtypes: Sequence[torch.dtype]
) -> Support | None:
    """Return why kernels for ``device_type`` and ``dtypes`` do not take such tensors, or ``None``."""
    if device.type != device_type:
        wanted = {"cpu": "CPU", "cuda": "CUDA"}[device_type]
        return Support(False, f"it takes {wanted} tensors, and these are on {device}")
    if dtype not in dtypes:
        return Support(False, f"it has no kernel for {dtype}")
    return None


class SupportsCheck(Protocol[P_contra]):
    """What every back end has: a support check that never raises."""

    def supports(self, problem: P_contra, /) -> Support:
        """Tell whether this back end takes the call, with the reason when it does not."""
        ...


@dataclass(frozen=True)
class Explanation:
    """Which back end a call takes, and why each other does not.

    Attributes:
        op: Name of the op.
        requested: The ``backend`` argument.
        chosen: Name of the back end taken; ``None`` when the call would be refused.
        reasons: For every back end, in order of preference, one sentence.
    """

    op: str
    requested: str
    chosen: str | None
    reasons: dict[str, str]

    def __str__(self) -> str:
        """Return the explanation as a small table."""
        width = max(len(name) for name in self.reasons)
        head = f"{self.op}(backend={self.requested!r}) -> {self.chosen or 'refused'}"
        return "\n".join([head, *(f"  {n:<{width}}  {r}" for n, r in self.reasons.items())])


class Backends(Generic[B]):
    """The ordered back ends of one op.

    Args:
        op: Name of the op.
        ordered: Name and back end, in the order in which ``auto`` asks them.
        first: Back ends that ``auto`` asks before all others in passes of the problems for which the
            function that stands beside their name is true; it is told whether a pass is the backward.
    """

    def __init__(
        self,
        op: str,
        ordered: Sequence[tuple[str, B]],
        first: Sequence[tuple[str, Callable[[Any, bool], bool]]] = (),
    ) -> None:
        self.op = op
        self._ordered = tuple(ordered)
        self._first = tuple(first)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the back ends, in the order ``auto`` tries them."""
        return tuple(name for name, _ in self._ordered)

    def check_name(self, requested: str) -> None:
        """Raise unless ``requested`` is ``auto`` or the name of a back end.

        Raises:
            ValueError: ``requested`` is neither.
        """
        if requested != AUTO and requested not in self.names:
            allowed = ", ".join(repr(name) for name in (AUTO, *self.names))
            raise ValueError(f"{self.op}: backend must be one of {allowed}, got {requested!r}")

    def _order(self, problem: Any, requested: str, backward: bool) -> Sequence[tuple[str, B]]:
        if requested != AUTO:
            return self._ordered
        ahead = [name for name, is_first in self._first if is_first(problem, backward)]
        if not ahead:
            return self._ordered
        return sorted(self._ordered, key=lambda one: one[0] not in ahead)

    def choose(self, problem: Any, requested: str, *, backward: bool = False) -> B:
        """Return the back end for a call, in its forward or its backward pass.

        Raises:
            ValueError: ``requested`` is not a back end.
            NotImplementedError: The back end asked for cannot take this call.
            RuntimeError: It could, but it is not built or not installed.
        """
        self.check_name(requested)
        refusals: list[str] = []
        for name, backend in self._order(problem, requested, backward):
            if requested not in (AUTO, name):
                continue
            support = backend.supports(problem)
            if support.ok:
                if requested == AUTO and name == "reference":
                    _warn_reference(self.op, refusals)
                return backend
            refusals.append(f"{name}: {support.reason}")
            if requested == name:
                error = RuntimeError if support.missing_build else NotImplementedError
                raise error(
                    f"{self.op}: backend must be able to take this call, got {name!r}: "
                    f"{support.reason}"
                )
        raise NotImplementedError(f"{self.op}: no back end takes this call ({'; '.join(refusals)})")

    def explain(self, problem: Any, requested: str = AUTO) -> Explanation:
        """Tell which back end a forward pass takes and why each other does not."""
        self.check_name(requested)
        chosen: str | None = None
        reasons: dict[str, str] = {}
        for name, backend in self._order(problem, requested, False):
            support = backend.supports(problem)
            wanted = requested in (AUTO, name)
            if not support.ok:
                reasons[name] = support.reason
                continue
            if wanted and chosen is None:
                chosen = name
                words = "taken"
            elif wanted:
                words = f"could take it; '{chosen}' comes first"
            else:
                words = f"could take it; '{requested}' was asked for"
            reasons[name] = words + (f"; {support.reason}" if support.reason else "")
        return Explanation(self.op, requested, chosen, reasons)


def _warn_reference(op: str, refusals: list[str]) -> None:
    """Say that no compiled kernel runs; Python shows the same text only once."""
    warnings.warn(
        f"{op}: no compiled back end takes this call, so the slower eager 'reference' runs "
        f"({'; '.join(refusals)})",
        stacklevel=2,
    )


Describer = Callable[..., tuple[Backends[Any], Any, str]]
_DESCRIBERS: dict[str, Describer] = {}


def register_describer(op: str, describer: Describer) -> None:
    """Let ``explain`` turn a call of ``op`` into (its back ends, the problem, the request)."""
    _DESCRIBERS[op] = describer


def explain(op: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Tell which back end a call would take, and why each other does not.

    Args:
        op: An op of this package, or its name (``"oc_attention"``).
        *args: The positional arguments of the call.
        **kwargs: The keyword arguments of the call, ``backend`` among them.

    Returns:
        The explanation; ``str()`` of it is a table.

    Raises:
        ValueError: ``op`` is not an op with back ends, or the arguments are not legal for it.
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", repr(op))
    if name not in _DESCRIBERS:
        raise ValueError(f"explain: op must be one of {sorted(_DESCRIBERS)}, got {name!r}")
    backends, problem, requested = _DESCRIBERS[name](*args, **kwargs)
    return backends.explain(problem, requested)
