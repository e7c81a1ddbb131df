# SPDX-License-Identifier: MIT
"""Losses on a GPU: the numbers of the CPU, the same bits each time, and no wait for the device."""

import pytest
import torch
from torch import Tensor

from ocnet.losses import CITYSCAPES_WEIGHTS, SegmentationLoss
from ocnet.models import Logits

pytestmark = pytest.mark.gpu
OPTIONS = [
    {"ohem": "none"},
    {"ohem": "single", "ohem_kind": "ocnet", "ohem_keep": 1000},
    {"ohem": "both", "ohem_kind": "openseg", "ohem_keep": 1000},
    {"ohem": "single", "ohem_kind": "hrnet", "ohem_keep": 0},
]


def inputs(device: str) -> tuple[Logits, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 19, 13, 17), (2, 19, 13, 17), (2, 2, 13, 17))
    logits = [torch.randn(*shape, generator=generator) for shape in shapes]
    target = torch.randint(0, 19, (2, 97, 129), generator=generator)
    target[:, :5] = 255
    leaves = [x.to(device).requires_grad_() for x in logits]
    return Logits(*leaves), target.to(device)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_numbers_are_those_of_the_cpu_without_waiting(options: dict[str, object]) -> None:
    loss = SegmentationLoss(weight=torch.tensor(CITYSCAPES_WEIGHTS), **options)  # type: ignore[arg-type]
    outputs, target = inputs("cpu")
    want = loss(outputs, target)
    want.backward()
    on_gpu = [inputs("cuda") for _ in range(2)]
    loss = loss.to("cuda")
    results = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for gpu_outputs, gpu_target in on_gpu:
            value = loss(gpu_outputs, gpu_target)
            value.backward()
            results.append((value, [x.grad for x in gpu_outputs]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    (first, grads), (again, other_grads) = results
    assert torch.equal(first, again)
    torch.testing.assert_close(first.cpu(), want)
    for grad, other, cpu in zip(grads, other_grads, outputs, strict=True):
        assert torch.equal(grad, other)
        torch.testing.assert_close(grad.cpu(), cpu.grad, rtol=1e-4, atol=1e-7)
