# SPDX-License-Identifier: MIT
"""Scoring on a GPU: the classes of the CPU, and memory that one batch of tiles bounds."""

import pytest
import torch

from ocnet.evaluation import InferenceOptions, Predictor
from ocnet.models import create

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("merge", ["mean_logits", "sum_logits", "exp_logits", "mean_probabilities"])
def test_a_gpu_finds_what_the_cpu_finds(merge: str) -> None:
    model = create("tiny_base_oc", 5, norm="batchnorm").double()
    options = InferenceOptions(
        "slide",
        (48, 64),
        overlap=0.5,
        scales=(0.75, 1.25),
        flip=True,
        merge=merge,  # type: ignore[arg-type]
    )
    image = torch.randn(3, 75, 101, dtype=torch.float64)
    want = Predictor(model, options, num_classes=5).logits(image)
    got = Predictor(model.cuda(), options, num_classes=5, device="cuda").logits(image)
    assert not got.is_cuda
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_memory_of_the_device_does_not_grow_with_the_picture() -> None:
    model = create("tiny_base_oc", 5, norm="batchnorm").cuda().eval()
    options = InferenceOptions("slide", (64, 64), scales=(1.0, 1.5), flip=True)
    predictor = Predictor(model, options, num_classes=5, device="cuda")
    peaks = []
    for side in (128, 512):
        torch.cuda.reset_peak_memory_stats()
        predictor.classes(torch.randn(3, side, side))
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] <= 1.05 * peaks[0]
