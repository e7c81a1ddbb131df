# SPDX-License-Identifier: MIT
"""Groups in the CPU kernels: the bits of plain attention on each group sliced out, from any layout."""

import pytest
import torch
from torch import Tensor

from ocnet.ops import Blocks, Grid, Strided, oc_attention, partitioned_attention
from ocnet.testing import AttentionInputs, by_groups, results_of, run_partitioned
from tests.ops.test_cpu_kernel import _pairs, spread  # noqa: F401

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("_cpu_kernels")]

# Groups for each of the paths: few keys, several blocks of tokens, and both in one call.
PARTITIONS = [Grid(2), Grid(3, 1), Blocks(8, 8), Blocks(16, 15), Strided(3, 4)]
SIZE = (33, 23)
LAYOUTS = {
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "gaps": lambda t: spread(t.flatten(2).mT).mT.unflatten(2, SIZE),
}
each_partition = pytest.mark.parametrize("partition", PARTITIONS, ids=str)
each_sharing = pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])


def draw(dtype: torch.dtype, shared: bool, e: int = 24, ev: int = 40) -> AttentionInputs:
    def leaf(channels: int) -> Tensor:
        return torch.randn(2, channels, *SIZE).to(dtype).requires_grad_()

    query = leaf(e)
    key = query if shared else leaf(e)
    return AttentionInputs(query, key, leaf(ev), torch.randn(2, ev, *SIZE).to(dtype), None)


def plain(cell: AttentionInputs):
    return results_of(lambda *maps, scale: oc_attention(*maps, scale=scale, backend="cpu"), cell)


def assert_same_bits(left, right) -> None:
    assert left.named().keys() == right.named().keys()
    for name, tensor in left.named().items():
        different = int((tensor != right.named()[name]).sum())
        assert different == 0, f"{name}: {different} of {tensor.numel()} differ"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@each_sharing
@each_partition
def test_each_group_is_plain_attention(partition, shared: bool, dtype: torch.dtype) -> None:
    inputs = draw(dtype, shared)
    assert_same_bits(run_partitioned(inputs, partition, "cpu"), by_groups(plain, inputs, partition))


@pytest.mark.usefixtures("_pairs")
@each_sharing
@each_partition
def test_bfloat16_in_pairs(partition, shared: bool) -> None:
    inputs = draw(torch.bfloat16, shared, 23, 37)
    assert_same_bits(run_partitioned(inputs, partition, "cpu"), by_groups(plain, inputs, partition))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels", [(64, 32), (37, 19)], ids=["panels", "odd"])
@each_sharing
@each_partition
def test_strides_change_no_bit(partition, shared: bool, channels, dtype: torch.dtype) -> None:
    inputs = draw(dtype, shared, *channels)
    expected = run_partitioned(inputs, partition, "cpu")
    for arrange in LAYOUTS.values():
        query, key, value, grad_out = (
            arrange(t.detach()) for t in (inputs.query, inputs.key, inputs.value, inputs.grad_out)
        )
        query.requires_grad_()
        key = query if shared else key.requires_grad_()
        moved = AttentionInputs(query, key, value.requires_grad_(), grad_out, None)
        assert_same_bits(run_partitioned(moved, partition, "cpu"), expected)


@each_sharing
@each_partition
def test_same_bits_for_any_number_of_threads(partition, shared: bool) -> None:
    inputs = draw(torch.float32, shared)
    expected = run_partitioned(inputs, partition, "cpu")
    for threads in (2, 3, 2):
        torch.set_num_threads(threads)
        assert_same_bits(run_partitioned(inputs, partition, "cpu"), expected)


def native_call(**changes) -> list:
    """Return the arguments of a legal call of the native forward op, some of them changed."""
    maps = torch.randn(1, 20, 8)
    given = {
        "query": [maps],
        "key": [],
        "value": [maps],
        "partition": [4, 2, 2, 1, 5, 2, 2, 1],
        "scale": 1.0,
        "tf32": False,
        "out": [torch.full_like(maps, 7.0)],
        "lse": [torch.empty(1, 20)],
        "residual": [],
    }
    return list((given | changes).values())


BAD = {
    "two keys": ({"key": [torch.randn(1, 20, 8)] * 2}, "key must have a tensor for each of the 1"),
    "no value": ({"value": []}, "value must have a tensor for each of the 1 stages, got 0"),
    "no stages": ({"query": []}, "query must have 1 to 4 stages, got 0"),
    "few numbers": ({"partition": [4, 2, 2, 1]}, "partition must have 8 numbers for each stage"),
    "empty group": ({"partition": [4, 3, 2, 1, 5, 2, 2, 1]}, r"must deal every .*\(4, 3, 2, 1\)"),
    "beyond": ({"partition": [4, 2, 2, 2, 5, 2, 2, 1]}, r"must deal every .*\(4, 2, 2, 2\)"),
    "negative": ({"partition": [4, -1, 2, 1, 5, 2, 2, 1]}, "must deal every position"),
    "other map": ({"partition": [5, 2, 2, 1, 5, 2, 2, 1]}, "as query has tokens, 20, got 5 x 5"),
    "other value": ({"value": [torch.randn(1, 21, 8)]}, "value must be a CPU tensor"),
    "wide lse": ({"lse": [torch.empty(1, 20).double()]}, "lse must be a contiguous CPU tensor"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses_what_would_leave_its_memory(name: str) -> None:
    changes, text = BAD[name]
    arguments = native_call(**changes)
    with pytest.raises(RuntimeError, match=f"partitioned_attention_fwd: .*{text}"):
        torch.ops.ocnet_cpu.partitioned_attention_fwd(*arguments)
    for out in arguments[6]:
        assert bool((out == 7.0).all())


def test_a_bad_stage_leaves_the_good_one_unwritten() -> None:
    first, second = native_call(), native_call(value=[torch.randn(1, 20, 9)])
    both = [[*a, *b] if isinstance(a, list) else a for a, b in zip(first, second, strict=True)]
    with pytest.raises(RuntimeError, match="out must be a CPU tensor"):
        torch.ops.ocnet_cpu.partitioned_attention_fwd(*both)
    assert bool((both[6][0] == 7.0).all())


def test_writes_only_pixels_of_the_map() -> None:
    query, value = (torch.randn(2, c, *SIZE) for c in (8, 6))
    whole = torch.full((2, SIZE[0] * SIZE[1] + 2, 12), 7.0)
    out = whole[:, 1:-1, 3:9]
    tokens = [t.flatten(2).mT for t in (query, value)]
    axes = Strided(3, 4).axes(*SIZE)
    torch.ops.ocnet_cpu.partitioned_attention_fwd(
        [tokens[0]], [], [tokens[1]], axes.flat(), 8**-0.5, False, [out], [torch.empty(2, 759)], []
    )
    want = partitioned_attention(query, query, value, Strided(3, 4), backend="cpu")
    assert torch.equal(out.mT.unflatten(2, SIZE), want)
    out.fill_(7.0)
    assert bool((whole == 7.0).all())
