# SPDX-License-Identifier: MIT
"""State dicts to load and to compare."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.models.slim import slim


def filled(name: str, **options: Any) -> nn.Module:
    """A network whose every tensor has its own numbers."""
    model = slim(name, **options)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.uniform_(0.5, 1)
    return model


def clone(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
