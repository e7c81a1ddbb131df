# SPDX-License-Identifier: MIT
"""That a function of maps is the same compiled, and exported, for sizes that it was not traced with."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def assert_same_compiled(
    step: Callable[..., Tensor], dynamic: bool, calls: Sequence[Sequence[Tensor]]
) -> None:
    """Compare the gradients of a number that is made of tensors, compiled into one graph, call by call."""
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for tensors in calls:
        want = torch.autograd.grad(step(*tensors), tensors)
        got = torch.autograd.grad(compiled(*tensors), tensors)
        torch.testing.assert_close(got, want)


def assert_same_exported(function: Callable[[Tensor], Tensor]) -> None:
    """Compare a function of a map of 4 channels, exported, on a map of another size."""

    class Net(torch.nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return function(maps)

    sides = {2: torch.export.Dim("h", min=2, max=64), 3: torch.export.Dim("w", min=2, max=64)}
    program = torch.export.export(Net(), (torch.randn(1, 4, 5, 6),), dynamic_shapes={"maps": sides})
    maps = torch.randn(1, 4, 9, 7)
    torch.testing.assert_close(program.module()(maps), function(maps))
