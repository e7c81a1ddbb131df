# SPDX-License-Identifier: MIT
"""Means between records, and the first loss that was not finite."""

import pytest
import torch

from ocnet.engine.loss_meter import LossMeter


def test_meter_names_the_first_bad_step() -> None:
    meter = LossMeter(torch.device("cpu"))
    for step, loss in enumerate([1.0, float("inf"), float("nan")], start=7):
        meter.add(step, torch.tensor(loss), 2)
    with pytest.raises(RuntimeError, match="got inf at step 8 "):
        meter.read()
    meter.restart()
    for step, loss in enumerate([1.0, 4.0], start=7):
        meter.add(step, torch.tensor(loss), 2)
    assert meter.read()["loss"] == 2.5
