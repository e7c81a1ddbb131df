# SPDX-License-Identifier: MIT
"""Networks by name: published sizes, options, and the segmentor's contract."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ocnet.heads import BaseOCHead
from ocnet.models import Segmentor, available, create
from ocnet.modules import ObjectContext

NAMES = [
    *(f"resnet{d}_{h}" for d in (18, 50, 101) for h in ("baseline", "base_oc", "local")),
    *("tiny_base_oc", "tiny_local"),
]


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_names() -> None:
    assert list(available()) == NAMES


@pytest.mark.parametrize(
    ("name", "parameters", "entries"),
    [("resnet101_baseline", 52_072_403, 538), ("resnet101_base_oc", 57_722_854, 568 - 6)],
)
def test_published_networks(name: str, parameters: int, entries: int) -> None:
    """The published Base-OC state names the six tensors of the shared transform twice."""
    with torch.device("meta"):
        model = create(name, 19)
    assert size(model) == parameters
    assert size(model.backbone) == 42_623_936
    assert len(model.state_dict()) == entries


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "resnet101", "tiny"])
def test_the_control_has_the_parameters_of_base_oc(backbone: str) -> None:
    with torch.device("meta"):
        networks = [create(f"{backbone}_{head}", 7) for head in ("base_oc", "local")]
    shapes = [{n: v.shape for n, v in net.state_dict().items()} for net in networks]
    assert shapes[0] == shapes[1]
    has_context = [any(isinstance(m, ObjectContext) for m in net.modules()) for net in networks]
    assert has_context == [True, False]


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_every_network(name: str) -> None:
    side = (16, 12) if name.startswith("tiny") else (9, 7)
    aux = name.startswith("resnet") and not name.endswith("baseline")
    # Shapes alone, without numbers: ResNet-101 in no time.
    with FakeTensorMode():
        model = create(name, 4, in_channels=2)
        images = torch.empty(2, 2, 64, 48)
        outputs = model(images)
        assert sorted(outputs) == (["aux", "main"] if aux else ["main"])
        assert {tuple(logits.shape) for logits in outputs.values()} == {(2, 4, *side)}
        assert sorted(model.eval()(images)) == ["main"]


def test_resnet18_trains_one_step() -> None:
    model = create("resnet18_base_oc", 3, backend="reference")
    outputs = model(torch.randn(2, 3, 33, 41))
    (outputs["main"].square().sum() + outputs["aux"].square().sum()).backward()
    idle = [n for n, p in model.named_parameters() if not float(p.grad.abs().max()) > 0]
    # W is zero at the start, so nothing below it moves in the first step.
    below = ("f_key.0.", "f_key.1.", "f_value.")
    assert all(any(part in name for part in below) for name in idle)
    assert len(idle) == 6


def test_options() -> None:
    model = create(
        "tiny_base_oc",
        5,
        in_channels=1,
        backend="reference",
        sizes=(1, 2),
        aux=True,
        channels=24,
        key_channels=8,
        value_channels=12,
        dropout=0.3,
    )
    blocks = [m for m in model.modules() if isinstance(m, ObjectContext)]
    assert [(b.scale, b.backend) for b in blocks] == [(1, "reference"), (2, "reference")]
    assert blocks[0].f_key[0].weight.shape == (8, 24, 1, 1)
    assert blocks[0].f_value.weight.shape == (12, 24, 1, 1)
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout2d)} == {0.3}
    outputs = model(torch.randn(2, 1, 32, 32))
    assert outputs["aux"].shape == outputs["main"].shape == (2, 5, 8, 8)
    with torch.device("meta"):
        assert create("resnet18_base_oc", 5, aux=False).aux_head is None
        assert create("resnet18_base_oc", 5).head.cls.in_channels == 128


def test_the_control_takes_the_backend_of_its_counterpart() -> None:
    assert isinstance(create("tiny_local", 5, backend="reference"), Segmentor)


def test_an_unknown_name_is_answered_with_the_names() -> None:
    with pytest.raises(
        ValueError, match=r"create: name must be one of .*got 'resnet18_baseoc'; "
    ) as e:
        create("resnet18_baseoc", 5)
    assert "the closest is 'resnet18_base_oc'" in str(e.value)
    assert all(name in str(e.value) for name in NAMES)
    with pytest.raises(ValueError, match=r"got 'zzz'$"):
        create("zzz", 5)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("tiny_local", {"sizes": (2,)}, r"sizes must be left at \(1,\) for tiny_local"),
        ("resnet18_baseline", {"key_channels": 8}, "must be left out for resnet18_baseline"),
        ("tiny_base_oc", {"channels": 0}, "channels must be at least 1, got 0"),
        ("tiny_base_oc", {"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ("tiny_local", {"value_channels": 8}, "value_channels must equal key_channels"),
    ],
    ids=["sizes", "key", "channels", "in_channels", "value"],
)
def test_options_that_do_not_fit_are_refused(name: str, options, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        create(name, 5, **options)
    with pytest.raises(TypeError, match="num_classes must be an integer, got '5'"):
        create("tiny_local", "5")


def test_images_are_checked() -> None:
    model = create("tiny_base_oc", 5)
    with pytest.raises(ValueError, match=r"Segmentor: images must have shape \(N, 3, H, W\), got"):
        model(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match=r"got \(3, 32, 32\)"):
        model(torch.zeros(3, 32, 32))
    with pytest.raises(TypeError, match=r"Segmentor: images must be floating, got torch\.uint8"):
        model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


def test_the_auxiliary_head_sees_the_earlier_layer() -> None:
    model = create("tiny_base_oc", 5, aux=True, backend="reference")
    seen = {}
    for name in ("head", "aux_head"):
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0]})
        )
    images = torch.randn(2, 3, 32, 32)
    model(images)
    features = model.backbone(images)
    assert torch.equal(seen["head"], features.out)
    assert torch.equal(seen["aux_head"], features.aux)
    assert not torch.equal(features.aux, features.out)
    assert isinstance(model.head, BaseOCHead)
