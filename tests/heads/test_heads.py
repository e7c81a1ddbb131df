# SPDX-License-Identifier: MIT
"""The heads: published names, and logits at the resolution of the features."""

import pytest
import torch
from torch import nn

from ocnet.heads import AuxiliaryHead, BaseOCHead, FCNHead, LocalHead
from ocnet.modules import ABN

HEADS = {
    "base_oc": lambda: BaseOCHead(7, 5, 8, 4, 4, backend="reference"),
    "local": lambda: LocalHead(7, 5, 8, 4, 4),
    "fcn": lambda: FCNHead(7, 5, 8),
    "auxiliary": lambda: AuxiliaryHead(7, 5, 8),
}


def names(head: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in head.named_parameters()}


@pytest.mark.parametrize("kind", HEADS)
def test_logits_at_the_resolution_of_the_features(kind: str) -> None:
    head = HEADS[kind]()
    features = torch.randn(2, 7, 9, 6, requires_grad=True)
    logits = head(features)
    assert logits.shape == (2, 5, 9, 6)
    logits.square().sum().backward()
    assert float(features.grad.abs().max()) > 0
    assert all(p.grad is not None for p in head.parameters())


def test_published_names() -> None:
    context = names(HEADS["base_oc"]())
    assert context["context.0.weight"] == (8, 7, 3, 3)
    assert context["context.0.bias"] == context["context.1.weight"] == (8,)
    assert context["context.2.stages.0.f_key.0.weight"] == (4, 8, 1, 1)
    assert context["context.2.conv_bn_dropout.0.weight"] == (8, 16, 1, 1)
    assert context["cls.weight"] == (5, 8, 1, 1)
    fcn = names(HEADS["fcn"]())
    assert list(fcn) == [
        *("layer5.0.weight", "layer5.0.bias", "layer5.1.weight", "layer5.1.bias"),
        *("layer6.weight", "layer6.bias"),
    ]
    auxiliary = names(HEADS["auxiliary"]())
    assert list(auxiliary) == [
        *("dsn.0.weight", "dsn.0.bias", "dsn.1.weight", "dsn.1.bias"),
        *("dsn.3.weight", "dsn.3.bias"),
    ]


@pytest.mark.parametrize("kind", HEADS)
def test_norms_of_heads_have_the_published_slope(kind: str) -> None:
    norms = [m for m in HEADS[kind]().modules() if isinstance(m, ABN)]
    assert {(m.activation, m.activation_param) for m in norms} == {("leaky_relu", 0.01)}


def test_published_sizes() -> None:
    with torch.device("meta"):
        heads = {
            "base_oc": BaseOCHead(2048, 19),
            "local": LocalHead(2048, 19),
            "fcn": FCNHead(2048, 19),
            "auxiliary": AuxiliaryHead(1024, 19),
        }
    sizes = {kind: sum(p.numel() for p in head.parameters()) for kind, head in heads.items()}
    # Whole published networks less the backbone: 52 072 403 and 57 722 854 - 42 623 936.
    assert sizes["fcn"] == 52_072_403 - 42_623_936
    assert sizes["base_oc"] + sizes["auxiliary"] == 57_722_854 - 42_623_936
    assert sizes["local"] == sizes["base_oc"]


def test_control_takes_the_state_of_the_head() -> None:
    HEADS["local"]().load_state_dict(HEADS["base_oc"]().state_dict())


def test_pooled_object_context() -> None:
    head = BaseOCHead(7, 5, 8, 4, 4, sizes=(2, 3), backend="reference")
    assert head(torch.randn(2, 7, 9, 7)).shape == (2, 5, 9, 7)


@pytest.mark.parametrize("head", [BaseOCHead, LocalHead, FCNHead, AuxiliaryHead])
def test_no_classes_are_refused(head: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=f"{head.__name__}: num_classes must be at least 1, got 0"):
        head(7, 0)
