# SPDX-License-Identifier: MIT
"""Sums of the losses of main, auxiliary and edge logits."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ocnet.losses import (
    CITYSCAPES_WEIGHTS,
    SegmentationLoss,
    cross_entropy,
    edge_labels,
    edge_loss,
    ohem_cross_entropy,
)
from tests.losses.restated import EPS

WEIGHT = torch.tensor([0.5, 2.0, 1.0, 1.5], dtype=torch.float64)


class Result(NamedTuple):
    main: Tensor
    aux: Tensor | None = None
    edge: Tensor | None = None


def draw() -> tuple[Result, Tensor]:
    shapes = ((2, 4, 3, 5), (2, 4, 2, 2), (2, 2, 4, 4))
    logits = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    target = torch.randint(0, 4, (2, 2, 2)).repeat_interleave(4, 1).repeat_interleave(5, 2)
    target[torch.rand(target.shape) < 0.2] = 255
    return Result(*logits), target


def test_the_auxiliary_loss_is_added() -> None:
    outputs, target = draw()
    main, aux = (cross_entropy(x, target, weight=WEIGHT) for x in outputs[:2])
    loss = SegmentationLoss(weight=WEIGHT)
    assert torch.equal(loss(Result(outputs.main), target), main)
    assert torch.equal(loss(Result(outputs.main, outputs.aux), target), main + 0.4 * aux)
    other = SegmentationLoss(aux_weight=0.0, ignore_index=-1)
    ignoring = target.where(target != 255, -1)
    got = other(Result(outputs.main, outputs.aux), ignoring)
    assert torch.equal(got, cross_entropy(outputs.main, target))


def test_the_loss_of_edges_is_added() -> None:
    outputs, target = draw()
    main, aux = (cross_entropy(x, target) for x in outputs[:2])
    edge = edge_loss(outputs.edge, edge_labels(target))
    assert float(edge.detach()) > 0
    ce2p = SegmentationLoss(aux_weight=1.0)
    assert torch.equal(ce2p(outputs, target), main + aux + edge)
    light = SegmentationLoss(aux_weight=1.0, edge_weight=0.25, ignore_index=-1)
    ignoring = target.where(target != 255, -1)
    assert torch.equal(light(outputs, ignoring), main + aux + 0.25 * edge)


@pytest.mark.parametrize("ignore", [0, 1, 3])
def test_an_ignored_class_is_not_an_edge(ignore: int) -> None:
    outputs, target = draw()
    want = SegmentationLoss()(outputs, target.where(target != ignore, 255))
    target = target.where(target != 255, ignore)
    assert torch.equal(SegmentationLoss(ignore_index=ignore)(outputs, target), want)


@pytest.mark.parametrize("kind", ["ocnet", "openseg", "hrnet"])
@pytest.mark.parametrize("ohem", ["none", "single", "both"])
def test_hard_pixels_where_asked(ohem: Any, kind: Any) -> None:
    outputs, target = draw()
    mining: dict[str, Any] = {"threshold": 0.3, "min_kept": 20, "kind": kind}
    over_all = (ohem, kind) == ("single", "hrnet")
    plain = [cross_entropy(x, target, weight=WEIGHT, over_all=over_all) for x in outputs[:2]]
    hard = [ohem_cross_entropy(x, target, weight=WEIGHT, **mining) for x in outputs[:2]]
    assert not {float(x.detach()) for x in plain} & {float(x.detach()) for x in hard}
    main = plain[0] if ohem == "none" else hard[0]
    aux = hard[1] if ohem == "both" else plain[1]
    loss = SegmentationLoss(
        weight=WEIGHT, ohem=ohem, ohem_kind=kind, ohem_threshold=0.3, ohem_keep=20
    )
    got = loss(Result(outputs.main, outputs.aux), target)
    assert torch.equal(got, main + 0.4 * aux)


def test_mining_is_that_of_ocnet_by_default() -> None:
    outputs, target = draw()
    got = SegmentationLoss(ohem="single")(Result(outputs.main), target)
    assert torch.equal(got, ohem_cross_entropy(outputs.main, target))


def test_outputs_need_no_edge() -> None:
    outputs, target = draw()
    got = SegmentationLoss()(SimpleNamespace(main=outputs.main, aux=outputs.aux), target)
    assert torch.equal(got, SegmentationLoss()(Result(outputs.main, outputs.aux), target))


def test_everything_learns() -> None:
    outputs, target = draw()
    SegmentationLoss(ohem="both", ohem_keep=20)(outputs, target).backward()
    assert all(bool(x.grad.any()) and bool(x.grad.isfinite().all()) for x in outputs)


@pytest.mark.parametrize("kind", ["ocnet", "openseg", "hrnet"])
@pytest.mark.parametrize("ohem", ["none", "single", "both"])
def test_nothing_to_learn_from_is_zero(ohem: Any, kind: Any) -> None:
    outputs, target = draw()
    loss = SegmentationLoss(ohem=ohem, ohem_kind=kind)(outputs, target.fill_(255))
    assert float(loss.detach()) == 0
    loss.backward()
    assert not any(bool(x.grad.any()) for x in outputs)


def test_class_weights_follow_the_module_and_stay_out_of_its_state() -> None:
    loss = SegmentationLoss(weight=torch.ones(4)).to("meta")
    assert loss.weight.device.type == "meta"
    assert loss.state_dict() == {}


def test_weights_of_cityscapes() -> None:
    assert len(CITYSCAPES_WEIGHTS) == 19
    # The sum of the list in the code of OCNet.
    assert CITYSCAPES_WEIGHTS[0] == min(CITYSCAPES_WEIGHTS) == 0.8373
    assert CITYSCAPES_WEIGHTS[-1] == 1.0507
    assert sum(CITYSCAPES_WEIGHTS) == pytest.approx(19.0001, abs=1e-9)


def test_missing_main_logits_are_named() -> None:
    match = "SegmentationLoss: outputs must have logits main and aux, got dict"
    with pytest.raises(TypeError, match=match):
        SegmentationLoss()({"main": torch.zeros(1, 2, 3, 3)}, torch.zeros(1, 3, 3).long())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"ohem": "all"}, "ohem must be one of none, single, both, got 'all'"),
        ({"ohem_kind": "mine"}, "ohem_kind must be one of ocnet, openseg, hrnet, got 'mine'"),
        ({"ohem_threshold": 2}, "ohem_threshold must be 0 to 1, got 2"),
        ({"ohem_keep": -3}, "ohem_keep must be 0 or more, got -3"),
    ],
)
def test_other_arguments_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=f"SegmentationLoss: {match}"):
        SegmentationLoss(**arguments)


def test_compiles_in_one_graph() -> None:
    outputs, target = draw()
    loss = SegmentationLoss(weight=WEIGHT, ohem="both", ohem_keep=20, ohem_threshold=0.3)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got, want = compiled(outputs, target), loss(outputs, target)
    torch.testing.assert_close(got, want, rtol=8 * EPS, atol=0)
    got, want = (torch.autograd.grad(x, outputs) for x in (got, want))
    torch.testing.assert_close(got, want, rtol=0, atol=8 * EPS)
