# SPDX-License-Identifier: MIT
"""What the Triton back end says of a call, without a GPU and without Triton."""

import itertools
import subprocess
import sys

import pytest
import torch

from ocnet._env import triton_interpreted
from ocnet.ops.oc_attention import configs, triton_backend, triton_plan
from ocnet.ops.oc_attention.problem import Problem

pytestmark = pytest.mark.skipif(triton_interpreted(), reason="TRITON_INTERPRET=1")


def _problem(
    dtype: torch.dtype = torch.bfloat16, e: int = 8, ev: int = 8, device: str = "cuda"
) -> Problem:
    return Problem(torch.device(device), dtype, 1, 4, 4, e, ev, False)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that has Triton and a GPU of compute capability 9.0."""
    monkeypatch.setattr(triton_plan, "kernels", lambda: None)
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


@pytest.mark.parametrize(
    ("dtype", "tf32", "wanted"),
    [
        (torch.bfloat16, False, "half"),
        (torch.float16, False, "half"),
        (torch.float32, True, "tf32"),
        (torch.float32, False, "float32"),
    ],
    ids=str,
)
def test_products_follow_the_call(dtype: torch.dtype, tf32: bool, wanted: str) -> None:
    matrix = torch.empty(1, 4, 8, dtype=dtype)
    assert triton_plan.Plan.of(matrix, matrix, tf32).math == wanted


def test_splits_fill_the_gpu_and_no_more() -> None:
    # one wave that is full already
    assert configs.splits((132, 1), 148, 132) == 1
    assert configs.splits((1320, 1), 148, 132) == 1
    # 48x48 and 97x97, batch 1, in 128 x 64 tiles: more programs than multiprocessors stand idle
    for tiles, steps in ((18, 36), (74, 148)):
        parts = configs.splits((tiles, 1), steps, 132)
        waves = -(-tiles * parts // 132)
        assert parts > 1
        assert tiles * parts / (132 * waves) > 0.8
    # the 19 regions of an image against 97x97 queries
    assert configs.splits((1, 1), 295, 132) > 30


def test_splits_leave_every_part_something() -> None:
    for tiles, steps, processors in itertools.product((1, 3, 50), (1, 2, 7, 300), (1, 82, 132)):
        assert 1 <= configs.splits((tiles, 1), steps, processors) <= steps


@pytest.mark.parametrize("kernel", ["few", "few_query"])
def test_few_keys_take_the_smallest_blocks_that_hold_them(kernel: str) -> None:
    for keys in (1, 19, 33, 64, 65, 128):
        tile = configs.few_keys(configs.FEW[kernel], "half", True, 256, 256, keys)
        assert tile is not None
        assert keys <= tile.keys0 + tile.keys1 < 2 * max(keys, 16) + 32
    assert configs.few_keys(configs.FEW[kernel], "half", True, 256, 256, 193) is None
    assert configs.few_keys(configs.FEW[kernel], "half", True, 256, 512, 19) is None
    assert configs.few_keys(configs.FEW[kernel], "half", False, 256, 256, 19) is None
    assert configs.few_keys(configs.FEW[kernel], "tf32", True, 256, 256, 19) is None


def test_tiles_of_unknown_versions_are_the_newest_ones() -> None:
    newest = configs.table("half", True, (3, 9))
    assert configs.table("half", True, (3, 7)) is newest
    assert configs.table("half", True, (4, 0)) is newest
    assert configs.table("half", True, (3, 6)) is not newest
    assert configs.table("half", True, (3, 4)) is configs.table("half", True, (3, 6))
