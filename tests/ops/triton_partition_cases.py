# SPDX-License-Identifier: MIT
"""The Triton kernels on groups of pixels, on the CPU in Triton's interpreter.

``test_triton_interpreter.py`` runs this file in a process of its own.
"""

import pytest
import torch

from ocnet._env import triton_interpreted
from ocnet.ops import Blocks, Grid, Strided, explain, partitioned_attention
from ocnet.ops.oc_attention import triton_plan
from ocnet.testing import (
    AttentionCase,
    assert_same_nonfinite,
    by_groups,
    make_inputs,
    oracle_results,
    random_partitions,
    run_partitioned,
)
from tests.ops.test_partitioned_attention import (
    assert_accurate,
    check,
    make_pyramid,
    run_pyramid,
)

# NumPy warns of every inf - inf that the interpreter computes; a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

FP32, FP16 = torch.float32, torch.float16
each_sharing = pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])


def test_this_process_interprets() -> None:
    assert triton_interpreted()
    x = make_inputs(AttentionCase())
    told = explain(partitioned_attention, x.query, x.key, x.value, Grid(2), backend="triton")
    assert told.chosen == "triton"


@pytest.mark.parametrize("seed", range(3))
def test_random_legal_calls(seed: int) -> None:
    for number, (case, partition) in enumerate(random_partitions(2, seed, (FP32, FP16), 7)):
        check(case, partition, "triton", "cpu", seed=100 * seed + number)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiles of compute capability 9.x, without its descriptors."""
    monkeypatch.setattr(triton_plan, "is_hopper", lambda device: True)


@each_sharing
@pytest.mark.parametrize("dtype", [FP16, FP32], ids=str)
def test_tiles_of_another_gpu(shared: bool, dtype: torch.dtype, hopper: None) -> None:
    """In 16 bits whole groups stay on chip there."""
    check(AttentionCase(1, 20, 17, (5, 8), None, dtype, shared=shared), Grid(2), "triton", "cpu")


@pytest.mark.parametrize("processors", [1, 6], ids=lambda n: f"{n}-processors")
@pytest.mark.parametrize(
    ("size", "partition"),
    [((9, 15), Blocks(9, 8)), ((13, 24), Strided(1, 2)), ((11, 19), Grid(1))],
    ids=["two blocks of keys", "wide second block", "too many keys"],
)
def test_groups_on_chip(
    size, partition, processors: int, hopper: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of 72 and 63 tokens, of 156, and of 209; the processors' programs share query tiles."""
    monkeypatch.setattr(triton_plan, "multiprocessors", lambda device: processors)
    check(AttentionCase(1, 12, 20, size, None, FP16), partition, "triton", "cpu")


@each_sharing
def test_small_and_large_groups_in_one_call(shared: bool, hopper: None) -> None:
    """Stages with small groups have launches of their own, and their bits are those of a call alone."""
    pyramid = make_pyramid("cpu", shared, (11, 19), FP16, 2)
    scales = [1, 2]
    outs, grads = run_pyramid(pyramid, scales, "triton")
    left = iter(grads)
    for scale, inputs, out in zip(scales, pyramid, outs, strict=True):
        alone = run_partitioned(inputs, Grid(scale), "triton")
        assert_accurate(f"scale {scale}", alone, inputs, Grid(scale))
        for name, tensor in alone.named().items():
            assert torch.equal(out if name == "out" else next(left), tensor), (scale, name)


@pytest.mark.parametrize("partition", [Grid(1, 2), Strided(1, 2)], ids=str)
def test_several_tiles_of_rows(partition) -> None:
    """Groups of more tokens than the widest tile has rows, on maps without aligned rows."""
    check(AttentionCase(1, 20, 17, (13, 23), None, FP16, shared=True), partition, "triton", "cpu")


@each_sharing
def test_a_pyramid_is_one_call_for_each_scale(shared: bool) -> None:
    scales = [1, Strided(2, 1), 2]
    pyramid = make_pyramid("cpu", shared, (4, 5), stages=3)
    outs, grads = run_pyramid(pyramid, scales, "triton")
    left = iter(grads)
    for scale, inputs, out in zip(scales, pyramid, outs, strict=True):
        partition = Grid(scale) if isinstance(scale, int) else scale
        for name, tensor in run_partitioned(inputs, partition, "triton").named().items():
            assert torch.equal(out if name == "out" else next(left), tensor), (scale, name)


@pytest.mark.parametrize("where", ["query", "key", "value", "grad_out"])
@pytest.mark.parametrize("partition", [Grid(2), Strided(1, 2)], ids=str)
def test_nonfinite_numbers_stay_in_their_group(partition, where: str) -> None:
    inputs = make_inputs(AttentionCase(1, 8, 6, (5, 6)), 5)
    with torch.no_grad():
        getattr(inputs, where)[0, 2, 3, 4] = float("nan")
    actual = run_partitioned(inputs, partition, "triton").named()
    oracle = by_groups(oracle_results, inputs, partition).named()
    for name, tensor in actual.items():
        assert_same_nonfinite(f"{name} with NaN in {where}", tensor, oracle[name])
