# SPDX-License-Identifier: MIT
"""What whole networks attend to."""

import pytest
import torch
from torch import nn

from ocnet.models import attention_views, create
from ocnet.modules import ABN, ISA, PyramidOC, SpatialGather
from tests.models.slim import STRUCTURES, attends, awake, slim

# Titles of the views, by network.
TITLES = {
    "resnet101_base_oc": ["object context"],
    "resnet101_pyramid_oc": ["whole map", "2 x 2 cells", "3 x 3 cells", "6 x 6 cells"],
    "resnet101_asp_oc": ["object context, 2 x 2 pooled"],
    "openseg_base_oc": ["object context"],
    "openseg_asp_oc": ["object context, 2 x 2 pooled"],
    "openseg_isa": ["long range, every 8 x 8", "short range, 8 x 8 blocks"],
    "openseg_ocr": ["soft class regions"],
    "openseg_asp_ocr": ["soft class regions"],
    "hrnet_w48_ocr": ["soft class regions"],
    "hrnet_w48_ocr_b": ["soft class regions"],
    "hrnet_w48_asp_ocr": ["soft class regions"],
    "seg_hrnet_w48_ocr": ["soft class regions"],
    "ce2p_asp_oc": ["object context, 2 x 2 pooled"],
}


def test_maps_are_rows_of_the_block_at_feature_pixels() -> None:
    model = create("tiny_base_oc", 5, in_channels=1, backend="reference")
    images = torch.randn(2, 1, 64, 48)
    points = torch.tensor([[0, 0], [63, 47], [3, 30]])
    (view,) = attention_views(model, images, points)
    maps = view.maps
    assert maps.shape == (2, 3, 16, 12)
    sums = maps.double().sum((2, 3))
    # 192 weights of one rounding each, and the normalising sum.
    bound = 192 * torch.finfo(maps.dtype).eps
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=bound)
    model.eval()
    with torch.no_grad():
        features = model.context[:2](model.body.features(model, images)[-1])
        block = model.context[2].stages[0]
        # Row 3 of 64 is row 3 * 15 / 63 = 0.7 of 16, column 30 of 48 is 30 * 11 / 47 = 7.02 of 12.
        want = block.attention_rows(features, torch.tensor([[0, 0], [15, 11], [1, 7]]))
    assert torch.equal(maps, want)
    each = attention_views(model, images, torch.stack([points, points.flip(0)]))[0].maps
    assert torch.equal(each[1], maps[1].flip(0))


@pytest.mark.parametrize("name", TITLES)
def test_every_network_that_attends_can_be_looked_into(name: str) -> None:
    model = awake(slim(name)).train()
    views = attention_views(model, torch.randn(1, 3, 97, 81), torch.tensor([[0, 0], [96, 40]]))
    assert [view.title for view in views] == TITLES[name]
    for view in views:
        assert view.of_classes == name.endswith(("_ocr", "_ocr_b"))
        assert view.maps.shape[:2] == (1, 4 if view.of_classes else 2)
        assert float(view.maps.min()) >= 0
        assert not view.maps.requires_grad
        sums = view.maps.double().sum((2, 3))
        least = 0.0 if name == "openseg_isa" else 1 - 1e-4
        assert bool((sums <= 1 + 1e-4).all())
        assert bool((sums >= least).all())
    assert model.training


def test_those_are_all() -> None:
    assert {name for name in STRUCTURES if attends(name)} == set(TITLES)
    for name in set(STRUCTURES) - set(TITLES):
        with pytest.raises(ValueError, match="attention_views: model must have object context in"):
            attention_views(slim(name), torch.randn(1, 3, 33, 33), torch.tensor([[0, 0]]))


def test_views_are_those_of_the_blocks() -> None:
    """Cells of the pyramid, both steps of ISA, and the regions of OCR, on the features they are given."""
    images, point = torch.randn(1, 3, 97, 97), torch.tensor([[40, 90]])
    # 97 pixels are 13 at stride 8.
    near = torch.tensor([[5, 11]])
    for name, kind in (("resnet101_pyramid_oc", PyramidOC), ("openseg_isa", ISA)):
        model = awake(slim(name)).eval()
        (block,) = [m for m in model.modules() if isinstance(m, kind)]
        seen = []
        handle = block.register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(inputs[0])
        )
        with torch.no_grad():
            model(images)
            handle.remove()
            want = block.attention_rows(seen[0], near)
        want = list(want[0]) if kind is ISA else want
        views = attention_views(model, images, point)
        assert len(views) == len(want)
        assert all(torch.equal(v.maps, w) for v, w in zip(views, want, strict=True))
    cells = attention_views(awake(slim("resnet101_pyramid_oc")), images, point)[3].maps[0, 0]
    # 13 rows and columns in cells of 2: rows 4 and 5, columns 10 to 12.
    inside = torch.zeros(13, 13, dtype=torch.bool)
    inside[4:6, 10:] = True
    assert bool((cells[inside] > 0).all())
    assert float(cells[~inside].max()) == 0


def test_regions_are_a_softmax_over_positions() -> None:
    model = awake(slim("openseg_ocr")).eval()
    images = torch.randn(2, 3, 65, 49)
    (view,) = attention_views(model, images, torch.tensor([[0, 0]]))
    with torch.no_grad():
        logits = model.dsn_head(model.backbone(images)[0])
    want = torch.softmax(logits.flatten(2), dim=2).reshape(logits.shape)
    assert torch.equal(view.maps, want)
    gather = SpatialGather()
    one_hot = torch.eye(9).reshape(1, 9, 3, 3)
    few = torch.randn(1, 4, 3, 3)
    # Features that are positions are gathered into the regions themselves.
    got = gather(one_hot, few)[0, :, :, 0].T.reshape(1, 4, 3, 3)
    torch.testing.assert_close(got, gather.regions(few))


def test_pooled_keys_give_smaller_maps() -> None:
    model = create("tiny_base_oc", 5, sizes=(2,), backend="reference")
    (view,) = attention_views(model, torch.randn(1, 3, 64, 48), torch.tensor([[63, 0]]))
    assert view.maps.shape == (1, 1, 8, 6)


def test_leaves_the_network_as_it_was() -> None:
    model = create("tiny_base_oc", 5, backend="reference").train()
    frozen = next(m for m in model.modules() if isinstance(m, ABN)).eval()
    modes = [m.training for m in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    images, point = torch.randn(2, 3, 32, 32), torch.tensor([[1, 1]])
    attention_views(model, images, point)
    with pytest.raises(ValueError, match="Segmentor: images"):
        attention_views(model, images[:, :1], point)
    assert [m.training for m in model.modules()] == modes
    assert not frozen.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_other_modules_are_refused() -> None:
    with pytest.raises(ValueError, match="got Conv2d without any"):
        attention_views(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 32, 32), torch.tensor([[1, 1]]))


def test_points_outside_the_image_are_refused() -> None:
    model = create("tiny_base_oc", 5)
    with pytest.raises(ValueError, match=r"map of 32 rows and 40 columns, got \(32, 0\)"):
        attention_views(model, torch.zeros(1, 3, 32, 40), torch.tensor([[31, 39], [32, 0]]))
