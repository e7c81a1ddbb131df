# SPDX-License-Identifier: MIT
"""Attention maps of whole networks."""

import pytest
import torch
from torch import nn

from ocnet.models import create
from ocnet.models.attention import attention_maps
from ocnet.modules import ABN


def test_maps_are_rows_of_the_block_at_feature_pixels() -> None:
    model = create("tiny_base_oc", 5, in_channels=1, backend="reference")
    images = torch.randn(2, 1, 64, 48)
    points = torch.tensor([[0, 0], [63, 47], [3, 30]])
    maps = attention_maps(model, images, points)
    assert maps.shape == (2, 3, 16, 12)
    sums = maps.double().sum((2, 3))
    # 192 weights of one rounding each, and the normalising sum.
    bound = 192 * torch.finfo(maps.dtype).eps
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=bound)
    model.eval()
    with torch.no_grad():
        features = model.head.context[:2](model.backbone(images).out)
        block = model.head.context[2].stages[0]
        # Row 3 of 64 is row 3 * 15 / 63 = 0.7 of 16, column 30 of 48 is 30 * 11 / 47 = 7.02 of 12.
        want = block.attention_rows(features, torch.tensor([[0, 0], [15, 11], [1, 7]]))
    assert torch.equal(maps, want)
    each = attention_maps(model, images, torch.stack([points, points.flip(0)]))
    assert torch.equal(each[1], maps[1].flip(0))


def test_pooled_keys_give_smaller_maps() -> None:
    model = create("tiny_base_oc", 5, sizes=(2,), backend="reference")
    maps = attention_maps(model, torch.randn(1, 3, 64, 48), torch.tensor([[63, 0]]))
    assert maps.shape == (1, 1, 8, 6)


def test_leaves_the_network_as_it_was() -> None:
    model = create("tiny_base_oc", 5, backend="reference").train()
    frozen = next(m for m in model.modules() if isinstance(m, ABN)).eval()
    modes = [m.training for m in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    images, point = torch.randn(2, 3, 32, 32), torch.tensor([[1, 1]])
    maps = attention_maps(model, images, point)
    assert not maps.requires_grad
    with pytest.raises(ValueError, match="Segmentor: images"):
        attention_maps(model, images[:, :1], point)
    assert [m.training for m in model.modules()] == modes
    assert not frozen.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    "model", [create("tiny_local", 5), nn.Conv2d(3, 4, 1)], ids=["net", "conv"]
)
def test_a_network_without_object_context_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="attention_maps: model must have an ObjectContext block"):
        attention_maps(model, torch.zeros(1, 3, 32, 32), torch.tensor([[1, 1]]))


def test_points_outside_the_image_are_refused() -> None:
    model = create("tiny_base_oc", 5)
    with pytest.raises(ValueError, match=r"map of 32 rows and 40 columns, got \(32, 0\)"):
        attention_maps(model, torch.zeros(1, 3, 32, 40), torch.tensor([[31, 39], [32, 0]]))
