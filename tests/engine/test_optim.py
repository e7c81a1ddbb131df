# SPDX-License-Identifier: MIT
"""Optimisers and schedules against their formulas."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from ocnet.engine.config import OptimConfig
from ocnet.engine.optim import build_optimizer, build_schedule

STEPS = 40


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.backbone_extra = nn.Linear(2, 2)
        self.head = nn.Linear(2, 3)


def optimizer_of(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    return build_optimizer(model, config, ["backbone"])


def all_rates(**options: Any) -> list[list[float]]:
    """Return the rates of each step, one for each group."""
    config = OptimConfig(lr=0.1, **options)
    optimizer = optimizer_of(Network(), config)
    schedule = build_schedule(optimizer, config, STEPS)
    found = []
    for _ in range(STEPS):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return found


def rates(**options: Any) -> list[float]:
    return [rate for (rate,) in all_rates(**options)]


def test_poly_is_its_formula() -> None:
    expected = [0.1 * (1 - step / STEPS) ** 0.9 for step in range(STEPS)]
    assert rates(name="sgd", schedule="poly") == pytest.approx(expected, rel=1e-14)


def test_poly_of_the_published_recipe_at_chosen_steps() -> None:
    config = OptimConfig("sgd", lr=0.01, schedule="poly")
    schedule = build_schedule(optimizer_of(Network(), config), config, 40_000)
    (factor,) = schedule.lr_lambdas  # type: ignore[attr-defined]
    chosen = {0: 1.0, 20_000: 0.5**0.9, 36_000: 0.1**0.9, 39_999: (1 / 40_000) ** 0.9, 40_000: 0}
    for step, expected in chosen.items():
        assert factor(step) == pytest.approx(expected, rel=1e-9)


def test_constant_stays() -> None:
    assert rates(name="sgd", schedule="constant") == [0.1] * STEPS


def test_warm_up_begins_low_and_ends_on_the_schedule() -> None:
    warm = {"name": "sgd", "warmup_steps": 8}
    expected = [0.1 * min(1, (step + 1) / 8) ** 4 for step in range(STEPS)]
    assert rates(schedule="constant", **warm) == pytest.approx(expected, rel=1e-14)
    poly = [rate * (1 - step / STEPS) ** 0.9 for step, rate in enumerate(expected)]
    assert rates(schedule="poly", **warm) == pytest.approx(poly, rel=1e-14)
    linear = rates(schedule="constant", warmup_power=1.0, **warm)
    assert linear[:2] == pytest.approx([0.0125, 0.025], rel=1e-14)


@pytest.mark.parametrize("options", [{"schedule": "poly"}, {"schedule": "one_cycle"}])
def test_heads_keep_their_multiple_of_the_rate(options: dict[str, Any]) -> None:
    for below, above in all_rates(name="sgd", head_lr=10.0, **options):
        assert above == pytest.approx(10 * below, rel=1e-12)


def test_groups_are_the_backbone_and_all_else() -> None:
    model = Network()
    below, above = optimizer_of(model, OptimConfig(head_lr=10.0)).param_groups
    # By whole names: "backbone_extra" is no part of "backbone".
    heads = [*model.backbone_extra.parameters(), *model.head.parameters()]
    for group, expected in ((below, [*model.backbone.parameters()]), (above, heads)):
        assert [id(p) for p in group["params"]] == [id(p) for p in expected]


@pytest.mark.parametrize("options", [{}, {"name": "sgd"}, {"name": "sgd", "momentum": 0.0}])
def test_one_cycle_rises_for_30_percent_and_falls_to_nothing(options: dict[str, Any]) -> None:
    found = rates(**options)
    rise = 0.3 * STEPS - 1
    expected = [
        0.1 / 25 + (0.1 - 0.1 / 25) * (1 - math.cos(math.pi * step / rise)) / 2
        for step in range(int(rise) + 1)
    ]
    assert found[: len(expected)] == pytest.approx(expected, rel=1e-12)
    assert max(found) == pytest.approx(0.1, rel=1e-12)
    assert found[-1] < 0.1 * 1e-3
    assert all(one > two for one, two in itertools.pairwise(found[12:]))


def test_optimizers_have_the_options_of_the_config() -> None:
    model = nn.Linear(2, 2)
    sgd = optimizer_of(model, OptimConfig("sgd", lr=0.1, momentum=0.8, weight_decay=0.02))
    assert isinstance(sgd, SGD)
    assert sgd.defaults["momentum"] == 0.8
    assert sgd.defaults["weight_decay"] == 0.02
    adamw = optimizer_of(model, OptimConfig("adamw", lr=0.1, weight_decay=0.02))
    assert isinstance(adamw, AdamW)
    assert adamw.defaults["weight_decay"] == 0.02


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    (group,) = optimizer_of(model, OptimConfig()).param_groups
    assert [parameter is model.weight for parameter in group["params"]] == [True]
    assert torch.is_tensor(group["params"][0])
