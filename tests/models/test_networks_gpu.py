# SPDX-License-Identifier: MIT
"""Every network on a GPU, against itself in float64 on the CPU."""

import copy

import pytest
import torch
from torch import Tensor

from tests.models.slim import STRUCTURES, awake, slim

pytestmark = pytest.mark.gpu


def outputs(name: str, images: Tensor) -> tuple[dict[str, Tensor], torch.nn.Module]:
    torch.manual_seed(0)
    model = awake(slim(name)).double().eval()
    with torch.no_grad():
        result = model(images.double())
    return {k: v for k, v in result._asdict().items() if v is not None}, model


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", STRUCTURES)
def test_equals_float64(name: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    images = torch.randn(2, 3, 97, 129)
    want, model = outputs(name, images)
    # What torch's own layers make of it on the CPU in the same precision.
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        eager = copy.deepcopy(model).float()(images)._asdict()
    net = copy.deepcopy(model).float().to("cuda", memory_format=layout)
    shown = images.to("cuda", memory_format=layout)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=dtype != torch.float32):
        got = net(shown)._asdict()
    for key, exact in want.items():
        rounding = float((eager[key].double() - exact).abs().max())
        error = float((got[key].cpu().double() - exact).abs().max())
        least = torch.finfo(torch.float32).eps * float(exact.abs().max())
        assert error <= 8 * rounding + 32 * least, key


@pytest.mark.parametrize("name", STRUCTURES)
def test_trains(name: str) -> None:
    model = awake(slim(name)).cuda().train()
    images = torch.randn(2, 3, 97, 129, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        result = model(images)
    sum(x.float().square().mean() for x in result if x is not None).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key
