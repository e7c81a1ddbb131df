# SPDX-License-Identifier: MIT
"""In-place ABN on a GPU: what a CPU cannot show."""

import pytest
import torch
from torch import Tensor

from ocnet.ops import inplace_abn
from ocnet.ops.inplace_abn.reference import naive_inplace_abn

pytestmark = [pytest.mark.gpu]
BACKENDS = ["cuda", pytest.param("triton", marks=pytest.mark.triton)]


def leaves(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=g).to("cuda", dtype)
    weight = torch.rand(shape[1], generator=g).cuda() + 0.5
    return x.requires_grad_(), weight.requires_grad_(), torch.rand(shape[1]).cuda().requires_grad_()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
def test_nothing_is_read_on_the_host(backend: str, layout: str) -> None:
    x, weight, bias = leaves(4, 16, 30, 31)
    x = x.detach().contiguous(memory_format=getattr(torch, layout)).requires_grad_()
    moved = torch.zeros(16, device="cuda"), torch.ones(16, device="cuda")

    def step() -> None:
        out = inplace_abn(x * 1, weight, bias, *moved, inplace=True, backend=backend)
        torch.autograd.grad(out, (x, weight, bias), torch.ones_like(out))

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
def test_a_cuda_graph_repeats_a_step(backend: str, layout: str) -> None:
    x, weight, bias = leaves(4, 16, 30, 31)
    x = x.detach().contiguous(memory_format=getattr(torch, layout)).requires_grad_()
    moved = torch.zeros(16, device="cuda"), torch.ones(16, device="cuda")

    def step() -> list[Tensor]:
        out = inplace_abn(x, weight, bias, *moved, backend=backend)
        return [out, *torch.autograd.grad(out, (x, weight, bias), torch.ones_like(out))]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    moved[0].zero_()
    graph.replay()
    torch.cuda.synchronize()
    mean = moved[0].clone()
    for got, want in zip(captured, step(), strict=True):
        assert torch.equal(got, want)
    torch.testing.assert_close(mean, 0.1 * x.detach().mean((0, 2, 3)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_takes_no_more_memory_than_its_maps(backend: str) -> None:
    x, weight, bias = leaves(8, 64, 128, 128)
    size = x.numel() * 4
    out = inplace_abn(x, weight, bias, backend=backend)
    grad_out = torch.ones_like(out)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    grads = torch.autograd.grad(out, (x, weight, bias), grad_out)
    torch.cuda.synchronize()
    # dx, and partial sums.
    assert torch.cuda.max_memory_allocated() - before <= size + size // 16
    del grads


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
def test_more_than_2_to_the_31_numbers(backend: str, layout: str) -> None:
    """The last image is far beyond what 32 bits count; all images are alike, so it is as the first."""
    if torch.cuda.get_device_properties(0).total_memory < 24 << 30:
        pytest.skip("needs 24 GiB")
    images = 2**31 // (64 * 1024 * 1024) + 1
    one = torch.randn(1, 64, 1024, 1024, device="cuda", dtype=torch.bfloat16)
    x = torch.empty(
        (images, 64, 1024, 1024), device="cuda", dtype=torch.bfloat16,
        memory_format=getattr(torch, layout),
    )  # fmt: skip
    x.copy_(one.expand_as(x))
    out = inplace_abn(x.requires_grad_(), backend=backend)
    assert torch.equal(out[-1], out[0])
    few = naive_inplace_abn(one.double()).to(torch.bfloat16)
    torch.testing.assert_close(out[-1:], few, rtol=2**-7, atol=1e-3)
    (grad,) = torch.autograd.grad(out, x, x.detach())
    assert torch.equal(grad[-1], grad[0])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_device_that_is_not_current(backend: str) -> None:
    x = torch.randn(2, 8, 9, 9, device="cuda:1")
    got = inplace_abn(x, backend=backend)
    torch.testing.assert_close(got, naive_inplace_abn(x))
