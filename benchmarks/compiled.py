# SPDX-License-Identifier: MIT
"""Functions compiled anew for each workload."""

from collections.abc import Callable

import torch
from torch import Tensor

from ocnet.engine.workload import Call


class CompiledFresh:
    """A function compiled anew for each workload, so that no limit on recompilations is met.

    Args:
        function: Takes the tensors of the op.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._compiled = function
        self._key: object = None

    def __call__(self, *tensors: Tensor) -> Tensor:
        key_now = tuple((tensor.shape, tensor.dtype, tensor.stride()) for tensor in tensors)
        if key_now != self._key:
            torch.compiler.reset()
            self._compiled = torch.compile(self._function, dynamic=False)
            self._key = key_now
        return self._compiled(*tensors)


def compile_refusal(workload: Call) -> str:
    """Return why the compiled form is not compared for a workload."""
    if workload.device == "cpu" and workload.dtype != "float32":
        return "on the CPU the compiled form is compared in float32 only"
    return ""
