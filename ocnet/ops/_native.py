# SPDX-License-Identifier: MIT
"""The back end that both native libraries share: the CPU and the CUDA one have the same schemas."""

import functools
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import torch

from ocnet.ops import _extension
from ocnet.ops._backends import SUPPORTED, Support

# Compute capability of the oldest GPUs that the CUDA library has code for.
_OLDEST = (8, 0)


class HasDevice(Protocol):
    """What a problem tells of where it is."""

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        ...


P = TypeVar("P", bound=HasDevice)


class NativeBackend(Generic[P]):
    """Calls ``torch.ops.ocnet_<half>.<op>_fwd`` and ``_bwd``.

    Args:
        op: Name of the op.
        half: ``"cpu"`` or ``"cuda"``.
        refuse: Returns why no kernel of this half takes a problem, or ``None``.
    """

    def __init__(self, op: str, half: str, refuse: Callable[[P, str], Support | None]) -> None:
        self._op = op
        self._half = half
        self._refuse = refuse

    def supports(self, problem: P) -> Support:
        """Tell whether the library of this half takes the call."""
        refusal = self._refuse(problem, self._half)
        if refusal is not None:
            return refusal
        library = _extension.load(self._half)
        if library.problem is not None:
            return Support(False, library.problem, missing_build=True)
        if self._half == "cuda":
            return _refuse_old(problem.device) or SUPPORTED
        return SUPPORTED

    def forward(self, call: tuple[Any, ...]) -> None:
        """Write the outputs of the call, whose fields are in the order of the native schema."""
        self.run("fwd", call)

    def backward(self, call: tuple[Any, ...]) -> None:
        """Write the gradients that are not ``None``."""
        self.run("bwd", call)

    def run(self, step: str, call: tuple[Any, ...]) -> None:
        """Call ``<op>_<step>``, of an op that has more steps than two."""
        _overload(self._half, f"{self._op}_{step}")(*call)


@functools.cache
def _overload(half: str, name: str) -> Callable[..., None]:
    found: Callable[..., None] = getattr(getattr(torch.ops, f"ocnet_{half}"), name).default
    return found


def _refuse_old(device: torch.device) -> Support | None:
    if torch.cuda.get_device_capability(device) >= _OLDEST:
        return None
    name = torch.cuda.get_device_name(device)
    return Support(False, f"it needs compute capability 8.0 or later, and {name} is older")
