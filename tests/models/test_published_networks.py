# SPDX-License-Identifier: MIT
"""Whole networks against their descriptions, on few channels: every layer, in order, with its dilation."""

import pytest
import torch
from torch import Tensor

from tests.models.slim import STRUCTURES, awake, slim
from tests.published.layers import State
from tests.published.networks import NETWORKS

RELU = ("seg_hrnet_w48_ocr",)
# ReLU-like kinks aside, both compute the same sums in other orders through a hundred layers.
CLOSE = 1e-9


def given(outputs: tuple[Tensor | None, ...]) -> list[Tensor]:
    return [logits for logits in outputs if logits is not None]


def compare(got: Tensor, want: Tensor, scale: Tensor, name: str) -> None:
    bound = CLOSE * float(scale.detach().abs().max())
    torch.testing.assert_close(got, want, rtol=0, atol=bound, msg=lambda m: f"{name}: {m}")


def test_every_structure_is_described() -> None:
    assert set(NETWORKS) == set(STRUCTURES)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_equals_its_description(name: str, training: bool) -> None:
    model = awake(slim(name, dropout=0.0)).double().train(training)
    plain = name in RELU
    state = State.of(model, magnitudes=not plain, relu=plain)
    images = torch.randn(2, 3, 67, 93, dtype=torch.float64)
    leaves = [images.clone().requires_grad_() for _ in range(2)]
    got, want = given(model(leaves[0])), NETWORKS[name](state, leaves[1])
    assert (
        len(got)
        == len(want)
        == {"resnet101_baseline": 1, "hrnet_w48": 1}.get(name, 3 if name.startswith("ce2p") else 2)
    )
    for i, (one, other) in enumerate(zip(got, want, strict=True)):
        compare(one, other, other, f"output {i}")
    for outputs in (got, want):
        loss = sum((logits.square().mean() for logits in outputs), torch.zeros(()))
        loss.backward()
    compare(leaves[0].grad, leaves[1].grad, leaves[1].grad, "images")
    grads = {n: state.tensors[n].grad for n, _ in model.named_parameters()}
    assert [n for n, grad in grads.items() if grad is None] == []
    largest = torch.stack([grad.abs().max() for grad in grads.values()])
    for key, parameter in model.named_parameters():
        compare(parameter.grad, grads[key], largest, key)
    for key, buffer in model.named_buffers():
        compare(buffer, state.tensors[key], buffer, key)
