# SPDX-License-Identifier: MIT
"""Attention within groups on Hopper's own instructions, at the level of the native op."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from ocnet.ops import Blocks, Grid, Strided
from ocnet.ops._layout import aligned_rows
from tests.ops.test_cuda_forward import HALVES
from tests.ops.test_cuda_kernels import INF, NAN, assert_same_bits, place
from tests.ops.test_cuda_partition import (
    KINDS,
    Results,
    Stage,
    assert_accurate,
    each_sharing,
    formula,
    make_pyramid,
    make_stage,
    only_emulated,
)
from tests.ops.test_hopper_forward import tiles_of
from tests.ops.test_hopper_plans import GROUPS, ROWS

pytestmark = pytest.mark.native

each_dtype = pytest.mark.parametrize("dtype", HALVES, ids=str)


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def run(hopper_ops, device: str) -> Callable[..., list[Results]]:
    """Run all stages in one call; returns the results of each, by name."""

    def run(
        stages: Sequence[Stage], layout: str = "channels_last", keep_residual: bool = True
    ) -> list[Results]:
        def rows(name: str) -> list[Tensor]:
            given = [getattr(stage, name) for stage in stages]
            return [aligned_rows(place(t, layout, device)) for t in given if t is not None]

        def empty() -> list[Tensor]:
            return [place(torch.full_like(s.grad_out, NAN), layout, device) for s in stages]

        query, key, value = (rows(name) for name in ("query", "key", "value"))
        partition = [n for s in stages for n in s.partition.axes(*s.size).flat()]
        lists = {"out": empty(), "residual": empty() if keep_residual else []}
        lists["lse"] = [torch.full(t.shape[:2], NAN, device=device) for t in query]
        hopper_ops.partitioned_attention_hopper_fwd(
            *(query, key, value, partition, query[0].shape[-1] ** -0.5),
            *(lists["out"], lists["lse"], lists["residual"]),
        )
        return [
            {name: tensors[i].cpu() for name, tensors in lists.items() if tensors}
            for i in range(len(stages))
        ]

    return run


# Rows of groups, each just filled, and with room to spare.
CHANNELS = [
    (size, row)
    for row in ROWS
    if row[0] == GROUPS
    for size in (row[1:3], (row[1] - 11, row[2] - 3), (row[1] - 60, row[2]))
]


@only_emulated
@each_dtype
@pytest.mark.parametrize(("channels", "row"), CHANNELS, ids=str)
def test_every_row(run, emulator, channels: tuple[int, int], row, dtype: torch.dtype) -> None:
    """Groups of two tiles of queries and several of keys, all of them ragged."""
    stage = make_stage(Blocks(9, 16), (9, 40), dtype, False, channels)
    (found,) = run([stage])
    assert_accurate(stage, found, dtype, ["fwd"])
    assert tiles_of(emulator) == [row[:4]]
    (launch,) = emulator.launches()
    assert (launch.threads, launch.cluster_blocks, launch.shared_bytes) == (384, 1, row[5])


@pytest.mark.parametrize(
    ("dtype", "shared"), [(torch.bfloat16, True), (torch.float16, False)], ids=str
)
def test_values_of_every_kind(run, dtype: torch.dtype, shared: bool) -> None:
    for number, (partition, size) in enumerate(KINDS):
        stage = make_stage(partition, size, dtype, shared, images=1 + number % 2)
        (found,) = run([stage])
        assert_accurate(stage, found, dtype, ["fwd"])


@each_sharing
def test_groups_that_end_anywhere(run, shared: bool) -> None:
    """In tiles of 128 queries and of 128 keys."""
    for tokens in (1, 64, 65, 127, 128, 129, 257):
        stage = make_stage(Blocks(1, tokens), (2, tokens), torch.float16, shared)
        (found,) = run([stage])
        assert_accurate(stage, found, torch.float16, ["fwd"])


@each_dtype
@pytest.mark.parametrize("ev", [257, 300, 512])
def test_slices_of_values(run, dtype: torch.dtype, ev: int) -> None:
    stage = make_stage(Strided(1, 2), (7, 20), dtype, channels=(130, ev))
    (found,) = run([stage])
    assert_accurate(stage, found, dtype, ["fwd"])


@only_emulated
@each_sharing
@each_dtype
def test_stages_are_one_launch_of_what_each_would_give(run, emulator, dtype, shared) -> None:
    stages = [make_stage(Grid(1, 2), (13, 40), dtype, shared), *make_pyramid(dtype, shared)[:3]]
    emulator.configure()
    together = run(stages)
    (launch,) = emulator.launches()
    blocks = 0
    for stage, found in zip(stages, together, strict=True):
        emulator.configure()
        (alone,) = run([stage])
        blocks += emulator.launches()[0].blocks
        assert_same_bits(alone, found)
        assert_accurate(stage, found, dtype, ["fwd"])
    assert launch.blocks == blocks  # one for each tile


@only_emulated
@each_sharing
def test_the_schedule_changes_no_bit(run, emulator, shared: bool) -> None:
    stages = [
        make_stage(Strided(2, 3), (19, 28), torch.bfloat16, shared),
        make_stage(Grid(1, 2), (9, 30), torch.bfloat16, shared, images=2),
    ]
    expected = run(stages)
    for seed in (1, 2, 3):
        emulator.configure(seed=seed, multiprocessors=seed)
        for found, same in zip(run(stages), expected, strict=True):
            assert_same_bits(found, same)


def test_strides_change_no_bit(run) -> None:
    for partition in (Blocks(3, 4), Strided(3, 2)):
        stage = make_stage(partition, (5, 8), torch.bfloat16, shared=False, images=2)
        (dense,) = run([stage])
        for layout in ("nchw", "gaps"):
            (found,) = run([stage], layout)
            assert_same_bits(found, dense)
        (without,) = run([stage], keep_residual=False)
        assert_same_bits(without, {name: dense[name] for name in without})


@pytest.mark.parametrize("number", [NAN, INF], ids=str)
@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_what_is_not_finite_stays_in_its_group(run, where: str, number: float) -> None:
    for partition in (Blocks(3, 4), Strided(2, 2)):
        stage = make_stage(partition, (4, 7), torch.bfloat16, shared=False)
        (clean,) = run([stage])
        getattr(stage, where)[0, 17, 1] = number
        (found,) = run([stage])
        (own,) = (group for group in stage.groups() if 17 in group)
        others = torch.ones(28, dtype=torch.bool)
        others[own] = False
        for name, tensor in found.items():
            assert torch.equal(tensor[:, others], clean[name][:, others]), name
        assert torch.equal(found["out"].isnan(), formula(stage)["out"].isnan())
