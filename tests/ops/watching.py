# SPDX-License-Identifier: MIT
"""The largest tensor that is made while somebody watches, inside of a back end too."""

from types import ModuleType

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """Numbers of the largest tensor that any operator returned, in ``numel``; not views of ``given``."""

    def __init__(self, *given: torch.Tensor) -> None:
        super().__init__()
        self.numel = 0
        self._given = {t.untyped_storage().data_ptr() for t in given}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in self._given:
                self.numel = max(self.numel, t.numel())
        return result


def watch_inside(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, *given: torch.Tensor
) -> LargestTensor:
    """Watch what the eager code of a back end makes.

    A mode around the call would not see it: it is off while it handles the op that the back end is.
    """
    largest = LargestTensor(*given)

    def watched(original):
        def run(call) -> None:
            with largest:
                original(call)

        return run

    for name in ("forward", "backward"):
        monkeypatch.setattr(backend, name, watched(getattr(backend, name)))
    return largest
