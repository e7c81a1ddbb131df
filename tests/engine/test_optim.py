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


def rates(**options: Any) -> list[float]:
    model = nn.Linear(2, 2)
    config = OptimConfig(lr=0.1, **options)
    optimizer = build_optimizer(model, config)
    schedule = build_schedule(optimizer, config, STEPS)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_poly_is_its_formula() -> None:
    expected = [0.1 * (1 - step / STEPS) ** 0.9 for step in range(STEPS)]
    # Computed step from step, a few roundings in each.
    assert rates(name="sgd", schedule="poly") == pytest.approx(expected, rel=STEPS * 1e-15)


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
    sgd = build_optimizer(model, OptimConfig("sgd", lr=0.1, momentum=0.8, weight_decay=0.02))
    assert isinstance(sgd, SGD)
    assert sgd.defaults["momentum"] == 0.8
    assert sgd.defaults["weight_decay"] == 0.02
    adamw = build_optimizer(model, OptimConfig("adamw", lr=0.1, weight_decay=0.02))
    assert isinstance(adamw, AdamW)
    assert adamw.defaults["weight_decay"] == 0.02


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    (group,) = build_optimizer(model, OptimConfig()).param_groups
    assert [parameter is model.weight for parameter in group["params"]] == [True]
    assert torch.is_tensor(group["params"][0])
