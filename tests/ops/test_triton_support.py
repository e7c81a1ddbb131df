# SPDX-License-Identifier: MIT
"""What the Triton back end says of a call, without a GPU and without Triton."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from ocnet._env import triton_interpreted
from ocnet.ops.oc_attention import triton_backend
from ocnet.ops.oc_attention.problem import Problem

pytestmark = pytest.mark.skipif(triton_interpreted(), reason="TRITON_INTERPRET=1")


def _problem(
    dtype: torch.dtype = torch.bfloat16, e: int = 8, ev: int = 8, device: str = "cuda"
) -> Problem:
    return Problem(torch.device(device), dtype, 1, 4, 4, e, ev, False)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that has Triton and a GPU of compute capability 9.0."""
    monkeypatch.setattr(triton_backend, "_kernels", lambda: None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return monkeypatch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_takes_the_widest_maps_in_its_dtypes(on_gpu, dtype: torch.dtype) -> None:
    assert triton_backend.supports(_problem(dtype, 512, 512)).ok


@pytest.mark.parametrize(
    ("problem", "word"),
    [
        (_problem(device="cpu"), "cpu"),
        (_problem(torch.float64), "float64"),
        (_problem(torch.int32), "int32"),
        (_problem(e=513), "513"),
        (_problem(ev=513), "513"),
    ],
    ids=["cpu", "float64", "int32", "wide-query", "wide-value"],
)
def test_refuses_with_the_reason(on_gpu, problem: Problem, word: str) -> None:
    support = triton_backend.supports(problem)
    assert not support.ok
    assert word in support.reason
    assert not support.missing_build


@pytest.mark.parametrize(
    ("capability", "taken"), [((7, 5), False), ((8, 0), True), ((12, 0), True)]
)
def test_refuses_old_gpus(on_gpu, capability: tuple[int, int], taken: bool) -> None:
    on_gpu.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    support = triton_backend.supports(_problem())
    assert support.ok == taken
    assert taken or "7.5" in support.reason


def test_refuses_amd(on_gpu) -> None:
    on_gpu.setattr(torch.version, "hip", "7.0")
    assert "AMD" in triton_backend.supports(_problem()).reason


def test_ops_import_without_triton() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from ocnet.ops.oc_attention import triton_backend\n"
        "from ocnet.ops.oc_attention.problem import Problem\n"
        "problem = Problem(torch.device('cuda'), torch.float16, 1, 4, 4, 8, 8, False)\n"
        "support = triton_backend.supports(problem)\n"
        "assert not support.ok and support.missing_build and 'triton' in support.reason, support\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.fixture
def _matmul_precision() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    yield
    matmul.fp32_precision = before


@pytest.mark.usefixtures("_matmul_precision")
@pytest.mark.parametrize(("setting", "wanted"), [("tf32", "tf32"), ("ieee", "ieee")])
def test_float32_products_follow_torch(setting: str, wanted: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = setting
    assert triton_backend._precision() == wanted
