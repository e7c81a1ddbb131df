# SPDX-License-Identifier: MIT
"""Optimiser and learning-rate schedule of a config."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, PolynomialLR

from ocnet.engine.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """Return the optimiser of all parameters that want gradients.

    Args:
        model: whose parameters.
        config: which optimiser, with what rates.

    Returns:
        ``AdamW`` or ``SGD``, one parameter group, norms and biases decayed like all others as in
        the OCNet recipe.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.name == "sgd":
        return SGD(
            parameters, config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    return AdamW(parameters, config.lr, weight_decay=config.weight_decay)


def build_schedule(optimizer: Optimizer, config: OptimConfig, steps: int) -> LRScheduler:
    """Return the schedule, to be stepped once after each update.

    ``poly`` is ``lr * (1 - step / steps) ** power``. ``one_cycle`` rises from ``lr / 25`` to
    ``lr`` over the first 30 % of the steps and falls to nearly 0, both along half a cosine, while
    momentum (or the first beta) does the opposite between 0.95 and 0.85.

    Args:
        optimizer: whose learning rate.
        config: which schedule, with what peak.
        steps: updates in all.

    Returns:
        The schedule, its first rate already set.

    Source: poly: Yuan et al., OCNet, section 4.1; one-cycle: Smith and Topin, Super-Convergence,
    with torch's defaults.
    """
    if config.schedule == "poly":
        return PolynomialLR(optimizer, total_iters=steps, power=config.power)
    # Plain SGD has no momentum to cycle.
    cycle_momentum = config.name == "adamw" or config.momentum > 0
    return OneCycleLR(optimizer, max_lr=config.lr, total_steps=steps, cycle_momentum=cycle_momentum)
