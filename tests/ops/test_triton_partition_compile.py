# SPDX-License-Identifier: MIT
"""Launches on groups compile to machine code and fit the shared memory of their GPUs."""

from pathlib import Path

import pytest
import torch

from ocnet._env import triton_interpreted
from ocnet.ops import Blocks, Grid, Partition, Strided
from ocnet.ops.oc_attention import configs, triton_plan
from ocnet.ops.partitioned_attention import triton_backend
from ocnet.ops.partitioned_attention.problem import BackwardCall, ForwardCall
from tests.ops.triton_compiling import Launches, compile_launch

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(triton_interpreted(), reason="TRITON_INTERPRET=1: kernels do not compile"),
]

BF16, FP32 = torch.bfloat16, torch.float32
PYRAMID: tuple[Partition, ...] = (Grid(1), Grid(2), Grid(3), Grid(6))
LONG: tuple[Partition, ...] = (Strided(8, 8),)
SHORT: tuple[Partition, ...] = (Blocks(8, 8),)


def launches(monkeypatch, partitions, dtype, capability: int, shared: bool, tf32: bool):
    """Return what a forward and a backward of a call would launch."""
    seen = Launches(triton_plan.kernels())
    monkeypatch.setattr(triton_plan, "kernels", lambda: seen)
    monkeypatch.setattr(triton_plan, "is_hopper", lambda device: capability == 90)

    def maps(channels: int) -> list[torch.Tensor]:
        shape = (2, 104 * 104, channels)
        return [torch.empty(shape, dtype=dtype, device="meta") for _ in partitions]

    numbers = [n for partition in partitions for n in partition.axes(104, 104).flat()]
    query, value, out = maps(256), maps(512), maps(512)
    key = [] if shared else maps(256)
    lse = [torch.empty(2, 104 * 104, device="meta") for _ in partitions]
    rest = out if dtype == BF16 else []
    forward = ForwardCall(query, key, value, numbers, 0.1, tf32, out, lse, rest)
    triton_backend.forward(forward)
    triton_backend.backward(
        BackwardCall(out, query, key, value, out, lse, rest, numbers, 0.1, tf32, query, key, value)
    )
    return seen.kept


CASES = [
    pytest.param(PYRAMID, BF16, 90, True, False, id="pyramid-bf16-sm90"),
    pytest.param(PYRAMID, BF16, 80, True, False, id="pyramid-bf16-sm80"),
    pytest.param(LONG, BF16, 90, False, False, id="long-bf16-sm90"),
    pytest.param(SHORT, FP32, 80, False, False, id="short-fp32-sm80", marks=pytest.mark.slow),
    pytest.param(SHORT, FP32, 90, False, True, id="short-tf32-sm90", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("partitions", "dtype", "capability", "shared", "tf32"), CASES)
def test_launches_fit(
    partitions, dtype, capability: int, shared: bool, tf32: bool, monkeypatch, tmp_path: Path
) -> None:
    limit = configs.SHARED_MEMORY_HOPPER if capability == 90 else configs.SHARED_MEMORY_PORTABLE
    kept = launches(monkeypatch, partitions, dtype, capability, shared, tf32)
    names = [kernel.fn.__name__ for kernel, _ in kept]
    # One launch of each pass takes all stages: values and features are apart at these widths.
    assert names.count("oc_attention_fwd_kernel") == 1
    assert names.count("oc_attention_bwd_delta_kernel") == 1
    assert names.count("oc_attention_bwd_kernel") == (2 if shared else 3)
    for launch in kept:
        used = compile_launch(launch, capability, tmp_path)
        name = launch[0].fn.__name__
        assert used.shared <= limit, name
        assert used.described == 0, name
        if capability == 90 and "delta" not in name:
            assert "wgmma" in used.assembly, name
