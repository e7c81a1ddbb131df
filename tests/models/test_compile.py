# SPDX-License-Identifier: MIT
"""Whole networks under torch.compile and torch.export."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ocnet.losses import DSNLoss
from ocnet.models import create

EPS = torch.finfo(torch.float64).eps


def network(name: str) -> nn.Module:
    model = create(
        name,
        4,
        in_channels=1,
        backend="reference",
        aux=True,
        channels=16,
        key_channels=8,
        value_channels=8,
        dropout=0.0,
    ).double()
    # W away from its zero start, so that attention takes part in both passes.
    nn.init.normal_(model.head.context[2].stages[0].W.weight)
    return model


def results(model: nn.Module, call: nn.Module, images: Tensor, target: Tensor) -> dict[str, Tensor]:
    outputs = call(images)
    loss = DSNLoss()(outputs, target)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {**outputs, "loss": loss, **grads, **dict(model.named_buffers())}


@pytest.mark.parametrize("name", ["tiny_base_oc", "tiny_local"])
def test_trains_in_one_graph(name: str) -> None:
    eager = network(name)
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    images, target = (
        torch.randn(2, 1, 32, 40, dtype=torch.float64),
        torch.randint(0, 4, (2, 32, 40)),
    )
    want = results(eager, eager, images, target)
    got = results(twin, compiled, images, target)
    assert got.keys() == want.keys()
    largest = max(float(value.detach().abs().max()) for value in want.values())
    for key in want:
        # Sums over at most all pixels, in another order at worst.
        torch.testing.assert_close(got[key], want[key], rtol=0, atol=2 * 32 * 40 * EPS * largest)


def test_exports_for_evaluation() -> None:
    model = network("tiny_base_oc").eval()
    images = torch.randn(2, 1, 32, 40, dtype=torch.float64)
    program = torch.export.export(model, (images,))
    got, want = program.module()(images)["main"], model(images)["main"]
    bound = 2 * 32 * 40 * EPS * float(want.detach().abs().max())
    torch.testing.assert_close(got, want, rtol=0, atol=bound)
