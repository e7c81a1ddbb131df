# SPDX-License-Identifier: MIT
"""Context modules of partitioned attention in one graph, for maps of several sizes."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from ocnet.modules import ISA, PyramidOC
from tests.modules.comparing import assert_steps_agree, run


def pyramid() -> nn.Module:
    module = PyramidOC(6, 4, 5, 7, dropout=0.0, backend="reference")
    for stage in module.stages:
        nn.init.normal_(stage.W.weight)
    return module


def interlaced() -> nn.Module:
    return ISA(6, 4, 5, 7, dropout=0.0, down_factors=((4, 3),), backend="reference")


@pytest.mark.parametrize("make", [pyramid, interlaced])
def test_trains_in_one_graph(make: Callable[[], nn.Module]) -> None:
    eager = make().double()
    twin = copy.deepcopy(eager)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(twin, fullgraph=True, backend=counter)
    for height, width in ((7, 9), (13, 10), (6, 11)):
        x = torch.randn(2, 6, height, width, dtype=torch.float64)
        eager.zero_grad()
        twin.zero_grad()
        want, got = run(eager, eager, x), run(compiled, twin, x)
        assert_steps_agree(got, want, 4 * (height + 4) * (width + 5))
    # The second size made sizes symbolic, the third ran in that graph.
    assert counter.frame_count == 2
