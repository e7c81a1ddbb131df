# SPDX-License-Identifier: MIT
"""What streaming kernels of the backward know of each query: lse in powers of two, and delta."""

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.native

INF, NAN = float("inf"), float("nan")


def run(target, dtype: torch.dtype, maps: list[torch.Tensor], lse: np.ndarray, pitch: int):
    """Return (images, pitch, 2) numbers of maps (images, tokens, channels)."""
    images, tokens, channels = maps[0].shape
    numbers = np.full((images, pitch, 2), NAN, np.float32)
    buffers = [t.to(dtype).view(torch.int16).numpy() for t in maps] + [lse]
    for buffer in buffers:
        buffer.flags.writeable = False
    name = f"row_numbers_{str(dtype).removeprefix('torch.')}"
    target.run_probe(name, [*buffers, numbers], [images, tokens, channels, pitch])
    return numbers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("tokens", "pitch"), [(1, 64), (31, 64), (63, 64), (64, 64), (70, 128)])
def test_numbers_of_tokens_and_zeros_behind_them(target, tokens: int, pitch: int, dtype) -> None:
    images, channels = 3, 13
    generator = torch.Generator().manual_seed(3)
    maps = [torch.randn(images, tokens, channels, generator=generator).to(dtype) for _ in range(3)]
    lse = torch.randn(images, tokens, generator=generator).numpy()
    numbers = run(target, dtype, maps, lse, pitch)
    assert (numbers[:, tokens:] == 0).all()  # of every image, though others follow
    grad, out, residual = (t.double().numpy() for t in maps)
    delta = (grad * (out + residual)).sum(-1)
    size = (np.abs(grad) * (np.abs(out) + np.abs(residual))).sum(-1)
    assert (np.abs(numbers[:, :tokens, 1] - delta) <= channels * 2.0**-24 * size).all()
    exact = lse.astype(np.float64) / np.log(2)
    assert (np.abs(numbers[:, :tokens, 0] - exact) <= 2.0**-23 * np.abs(exact)).all()


def test_numbers_that_are_not_finite(target) -> None:
    """Kept as they are, but an infinite incoming gradient makes NaN: its softmax has inf - inf."""
    maps = [torch.ones(1, 3, 4) for _ in range(3)]
    maps[0][0, 1, 2] = INF
    lse = np.array([[-INF, 1, NAN]], np.float32)
    numbers = run(target, torch.float16, maps, lse, 64)[0]
    assert numbers[0, 0] == -INF
    assert np.isnan(numbers[2, 0])
    assert np.isnan(numbers[1, 1])
    assert numbers[0, 1] == numbers[2, 1] == 8
    assert (numbers[3:] == 0).all()
