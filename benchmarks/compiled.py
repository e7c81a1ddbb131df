# SPDX-License-Identifier: MIT
"""Functions compiled anew for each workload."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor

from ocnet.engine.workload import Call


class CompiledFresh:
    """A function compiled anew for each workload, so that no limit on recompilations is met.

    Args:
        function: Takes the tensors of the op, and its options by name.
        **settings: Of ``torch._functorch.config``, while it is compiled.
    """

    def __init__(
        self, function: Callable[..., Tensor | Sequence[Tensor]], **settings: float
    ) -> None:
        self._function, self._settings = function, settings
        self._compiled = function
        self._key: object = None

    def __call__(self, *tensors: Tensor, **options: Any) -> Tensor | Sequence[Tensor]:
        key_now = tuple(
            (tensor.shape, tensor.dtype, tensor.stride(), tensor.requires_grad)
            for tensor in tensors
        )
        if key_now == self._key:
            return self._compiled(*tensors, **options)
        torch.compiler.reset()
        self._compiled = torch.compile(self._function, dynamic=False)
        # The first call compiles, and decides what is kept for the backward pass.
        with torch._functorch.config.patch(self._settings):
            result = self._compiled(*tensors, **options)
        self._key = key_now
        return result


def compile_refusal(workload: Call) -> str:
    """Return why the compiled form is not compared for a workload."""
    if workload.device == "cpu" and workload.dtype != "float32":
        return "on the CPU the compiled form is compared in float32 only"
    return ""


def flex_refusal(workload: Call) -> str:
    """Return why FlexAttention is not compared for a workload."""
    if workload.device == "cpu":
        return "FlexAttention has no backward pass on the CPU"
    if workload.dtype == "float64":
        return "FlexAttention takes no float64"
    return ""
