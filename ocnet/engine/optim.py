# SPDX-License-Identifier: MIT
"""Optimiser and learning-rate schedule of a config."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from ocnet.engine.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig, backbone: Iterable[str]) -> Optimizer:
    """Return the optimiser of all parameters that want gradients.

    Args:
        model: whose parameters.
        config: which optimiser, with what rates.
        backbone: names of the children that are the backbone.

    Returns:
        ``AdamW`` or ``SGD``; one parameter group, or where ``head_lr`` is not 1 two, backbone and head.
        Norms and biases are decayed like all others, as in the OCNet recipe.

    Source: two groups: openseg's ``nbb_mult``; the HRNet repository asks for it by words in the names of
    parameters, which are those of its heads.
    """
    groups = _groups(model, config, set(backbone))
    if config.name == "sgd":
        return SGD(groups, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return AdamW(groups, config.lr, weight_decay=config.weight_decay)


def _groups(model: nn.Module, config: OptimConfig, backbone: set[str]) -> list[dict[str, Any]]:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if config.head_lr == 1:
        return [{"params": [parameter for _, parameter in trained]}]
    below, above = (
        [p for name, p in trained if (name.partition(".")[0] in backbone) == inside]
        for inside in (True, False)
    )
    return [{"params": below}, {"params": above, "lr": config.lr * config.head_lr}]


def build_schedule(optimizer: Optimizer, config: OptimConfig, steps: int) -> LRScheduler:
    """Return the schedule, to be stepped once after each update.

    ``poly`` is ``lr * (1 - step / steps) ** power``, ``constant`` is ``lr``; the first ``warmup_steps`` steps
    of both have that times ``(step / warmup_steps) ** warmup_power``, counted from 1. ``one_cycle`` rises
    from ``lr / 25`` to ``lr`` over the first 30 % of the steps and falls to nearly 0, both along half a
    cosine, while momentum (or the first beta) does the opposite between 0.95 and 0.85.

    Args:
        optimizer: whose learning rates; each group keeps its ratio.
        config: which schedule, with what peak.
        steps: updates in all.

    Returns:
        The schedule, its first rates already set.

    Source: poly: Yuan et al., OCNet, section 4.1; warm-up: openseg's ``is_warm``, which there is of the
    backbone's rate alone; one-cycle: Smith and Topin, Super-Convergence, with torch's defaults.
    """
    if config.schedule == "one_cycle":
        # Plain SGD has no momentum to cycle.
        cycle_momentum = config.name == "adamw" or config.momentum > 0
        peaks = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, max_lr=peaks, total_steps=steps, cycle_momentum=cycle_momentum)

    def factor(step: int) -> float:
        # Schedulers also ask for the rate after the last step.
        left = max(0.0, 1 - step / steps)
        rate = left**config.power if config.schedule == "poly" else 1.0
        if step < config.warmup_steps:
            rate *= ((step + 1) / config.warmup_steps) ** config.warmup_power
        return rate

    return LambdaLR(optimizer, factor)
