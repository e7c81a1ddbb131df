# SPDX-License-Identifier: MIT
"""Whole networks under torch.compile and torch.export."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ocnet.losses import SegmentationLoss
from tests.models.slim import STRUCTURES, awake, slim

# One network on HRNet; the heads of the others are among these.
NETWORKS = [*(n for n in STRUCTURES if "hrnet" not in n), "seg_hrnet_w48_ocr"]
# Sums in other orders, in double, through a hundred layers.
CLOSE = 1e-9


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """Forget the networks of other tests: the compiler keeps eight for one forward method."""
    torch.compiler.reset()


def results(model: nn.Module, call: nn.Module, images: Tensor, target: Tensor) -> dict[str, Tensor]:
    outputs = call(images)
    loss = SegmentationLoss()(outputs, target)
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    logits = {n: x for n, x in outputs._asdict().items() if x is not None}
    return {**logits, "loss": loss, **grads, **dict(model.named_buffers())}


@pytest.mark.parametrize("name", [*NETWORKS, "tiny_base_oc"])
def test_trains_in_one_graph(name: str) -> None:
    eager = awake(slim(name, dropout=0.0)).double().train()
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    images = torch.randn(2, 3, 40, 49, dtype=torch.float64)
    target = torch.randint(0, 4, (2, 40, 49))
    want = results(eager, eager, images, target)
    got = results(twin, compiled, images, target)
    assert got.keys() == want.keys()
    largest = max(float(value.detach().abs().max()) for value in want.values())
    for key in want:
        torch.testing.assert_close(got[key], want[key], rtol=0, atol=CLOSE * largest)


@pytest.mark.parametrize("name", NETWORKS)
def test_exports_for_evaluation(name: str) -> None:
    model = awake(slim(name)).double().eval()
    images = torch.randn(2, 3, 40, 49, dtype=torch.float64)
    program = torch.export.export(model, (images,))
    got, want = program.module()(images), model(images)
    assert type(got) is type(want)
    for one, other in zip(got, want, strict=True):
        assert (one is None) == (other is None)
        if other is not None:
            bound = CLOSE * float(other.detach().abs().max())
            torch.testing.assert_close(one, other, rtol=0, atol=bound)


def test_a_backbone_that_is_computed_again_compiles() -> None:
    model = awake(slim("openseg_base_oc", dropout=0.0, checkpoint_backbone=True)).double().train()
    twin = copy.deepcopy(model)
    images = torch.randn(2, 3, 40, 49, dtype=torch.float64)
    target = torch.randint(0, 4, (2, 40, 49))
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    want, got = (results(m, c, images, target) for m, c in ((model, model), (twin, compiled)))
    largest = max(float(value.detach().abs().max()) for value in want.values())
    for key in want:
        torch.testing.assert_close(got[key], want[key], rtol=0, atol=CLOSE * largest)
