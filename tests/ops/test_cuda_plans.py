# SPDX-License-Identifier: MIT
"""How launches of the CUDA attention are cut into blocks: arithmetic of sizes, without a launch."""

import itertools
import math

import pytest

from ocnet.ops import Blocks, Grid, Partition, Strided

pytestmark = pytest.mark.native

# What a block may have on sm_86, 89 and 120; on sm_80; on sm_90.
LIMITS = [99 * 1024, 163 * 1024, 227 * 1024]
CHANNELS = [1, 19, 64, 128, 150, 256, 300, 384, 511, 512]


@pytest.fixture
def plan(emulator):
    def plan(images, queries, keys, e=256, ev=256, arithmetic="narrow", limit=LIMITS[-1]):
        kind = getattr(emulator.Arithmetic, arithmetic)
        return emulator.plan_forward(images, queries, keys, e, ev, kind, limit, 132)

    return plan


def rows_of(e: int, ev: int, element: int, width: int) -> tuple[int, int]:
    """Bytes of a key and of a value in shared memory."""
    values = width if ev > width // 2 else width // 2
    return math.ceil(e * element / 128) * 128, math.ceil(values * element / 128) * 128


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("arithmetic", ["narrow", "tf32", "split"])
@pytest.mark.parametrize("keys", [1, 171, 9409])
def test_every_call_has_a_plan_that_fits(plan, keys: int, arithmetic: str, limit: int) -> None:
    for e in CHANNELS:
        for ev in CHANNELS:
            got = plan(2, 9409, keys, e, ev, arithmetic, limit)
            assert 1 <= got.warps <= 8
            key, value = rows_of(e, ev, 2 if arithmetic == "narrow" else 4, got.width)
            tiles = got.key_tiles if got.resident else 1
            needed = 16 * got.warps * key + tiles * got.cols * (key + value)
            assert needed == got.shared_bytes <= limit
            assert got.slices * got.width >= ev > (got.slices - 1) * got.width
            assert got.row_tiles * got.warps * 16 >= 9409
            assert got.key_tiles * got.cols >= keys
            assert got.blocks == 2 * got.slices * got.walkers * got.splits
            assert 1 <= got.splits <= got.key_tiles


@pytest.mark.parametrize(
    ("limit", "warps", "cols"), [(LIMITS[0], 8, 32), (LIMITS[1], 8, 64), (LIMITS[2], 8, 64)]
)
def test_published_channels_in_16_bits_fill_a_block(plan, limit, warps, cols) -> None:
    got = plan(8, 9409, 9409, limit=limit)
    assert (got.warps, got.cols, got.width, got.slices) == (warps, cols, 256, 1)


def test_too_small_a_device_gets_no_plan(plan) -> None:
    """A device whose blocks may have less than the smallest table row needs gets no plan."""
    assert plan(1, 64, 64, 512, 512, "tf32", limit=48 * 1024).warps == 0
    assert plan(1, 64, 64, 64, 64, "tf32", limit=48 * 1024).warps > 0


@pytest.mark.parametrize("keys", [19, 60, 150, 171, 192])
def test_few_keys_stay_in_shared_memory(plan, keys: int) -> None:
    got = plan(4, 9409, keys)
    assert got.resident
    assert got.warps >= 4
    # Each block reads the keys of its image once, and every multiprocessor has a block.
    assert 132 <= got.blocks < 4 * got.row_tiles
    assert got.walkers * 4 == got.blocks


def test_many_keys_stream(plan) -> None:
    assert not plan(4, 9409, 200).resident
    assert not plan(4, 9409, 9409).resident


def test_keys_do_not_stay_where_each_block_has_one_tile(plan) -> None:
    assert not plan(1, 256, 19).resident


def test_split_count_fills_the_multiprocessors(emulator) -> None:
    # 48 x 48 at batch 1, tiles of 128 x 64: 18 tiles of queries, 36 of keys.
    assert 18 * emulator.split_count(18, 36, 132) in range(100, 133)
    # 97 x 97 at batch 1: 74 tiles leave 58 multiprocessors idle.
    assert emulator.split_count(74, 148, 132) > 1
    # Nothing to gain: all are busy, or there is one tile of keys.
    assert emulator.split_count(132, 148, 132) == 1
    assert emulator.split_count(5920, 148, 132) == 1
    assert emulator.split_count(1, 1, 132) == 1
    assert emulator.split_count(1, 4, 132) == 1


@pytest.mark.parametrize("processors", [1, 56, 108, 132])
def test_split_count_never_takes_longer_than_none(emulator, processors: int) -> None:
    def time(tiles: int, key_tiles: int, parts: int) -> int:
        """Tiles of keys one after the other; writing and reading a part takes as long as four."""
        return -(-tiles * parts // processors) * (-(-key_tiles // parts) + 4 * (parts > 1))

    for tiles in (1, 7, 18, 74, 133, 148, 400):
        for key_tiles in (1, 2, 9, 36, 148, 512):
            parts = emulator.split_count(tiles, key_tiles, processors)
            assert 1 <= parts <= min(16, key_tiles)
            times = [time(tiles, key_tiles, n) for n in range(1, min(16, key_tiles) + 1)]
            assert times[parts - 1] <= 1.1 * min(times)
            assert all(other > 1.1 * min(times) for other in times[: parts - 1])


FIELDS = ("warps", "cols", "width", "resident", "slices", "splits", "walkers", "shared_bytes")


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("arithmetic", ["narrow", "tf32", "split"])
def test_the_group_of_a_block_costs_no_tile(emulator, plan, arithmetic: str, limit: int) -> None:
    """What a block keeps of its group lies in room that no plan would have used."""
    room = limit - emulator.group_bytes
    for e, ev, keys in itertools.product(CHANNELS, CHANNELS, (19, 171, 9409)):
        plans = [plan(2, 9409, keys, e, ev, arithmetic, bytes_) for bytes_ in (limit, room)]
        assert len({tuple(getattr(p, name) for name in FIELDS) for p in plans}) == 1
    element = 2 if arithmetic == "narrow" else 4
    for e, ev, role, wants in itertools.product(
        CHANNELS, CHANNELS, ("both", "queries", "keys"), (True, False)
    ):
        found = {
            emulator.plan_bwd(
                element, e, ev, role, wants, role != "queries", bytes_, 1, 99, 99, 132
            ).layout.bytes
            for bytes_ in (limit, room)
        }
        assert len(found) == 1


@pytest.fixture
def plan_groups(emulator):
    def plan_groups(
        stages: list[tuple[Partition, int, int]],
        images: int = 4,
        channels: tuple[int, int] = (256, 512),
        arithmetic: str = "narrow",
        shared: bool = True,
        limit: int = LIMITS[-1],
    ):
        """Return the plan of a launch, and its families in the order of their blocks."""
        room = limit - emulator.group_bytes
        listed = [(images, partition.axes(h, w).flat()) for partition, h, w in stages]
        kind = getattr(emulator.Arithmetic, arithmetic)
        plan, work = emulator.plan_groups(listed, *channels, kind, shared, room, 132)
        return plan, work.families

    return plan_groups


PYRAMID = [(Grid(s), 97, 97) for s in (1, 2, 3, 6)]
INTERLACED = [(kind(8, 8), h, w) for kind in (Strided, Blocks) for h, w in ((104, 104), (136, 264))]
LAUNCHES = [PYRAMID, *([stage] for stage in (*PYRAMID, *INTERLACED, (Strided(50, 50), 60, 60)))]


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("arithmetic", ["narrow", "tf32", "split"])
def test_plans_of_groups_fit(emulator, plan_groups, arithmetic: str, limit: int) -> None:
    element = 2 if arithmetic == "narrow" else 4
    for stages, channels, shared in itertools.product(
        LAUNCHES, [(256, 512), (64, 64), (512, 512), (1, 130)], (True, False)
    ):
        got, families = plan_groups(stages, 4, channels, arithmetic, shared, limit)
        assert 1 <= got.warps <= 8
        key, value = rows_of(*channels, element, got.width)
        tiles = max(f.col_tiles for f in families) if got.resident else 1
        queries = 0 if got.queries_are_keys else 16 * got.warps * key
        assert queries + tiles * got.cols * (key + value) == got.shared_bytes
        assert got.shared_bytes + emulator.group_bytes <= limit
        assert got.queries_are_keys == (got.resident and shared)
        blocks = 0
        for family in families:
            assert family.first_block == blocks
            assert family.row_tiles == math.ceil(family.tokens / (16 * got.warps))
            assert family.col_tiles == math.ceil(family.tokens / got.cols)
            walkers = 1 if got.resident else family.row_tiles
            blocks += family.images * family.groups * walkers * got.slices
        assert blocks == got.blocks
        # Nobody has warps that no group needs.
        assert 16 * (got.warps - 1) < max(family.tokens for family in families)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("arithmetic", ["narrow", "tf32", "split"])
def test_tiles_of_keys_do_not_depend_on_the_stages(plan_groups, arithmetic, limit: int) -> None:
    """Else a stage would give other bits beside others than alone."""
    for channels in itertools.product(CHANNELS, CHANNELS):
        plans = [plan_groups(s, 1, channels, arithmetic, True, limit)[0] for s in LAUNCHES]
        assert len({(p.cols, p.width, p.splits) for p in plans}) == 1


def test_longest_work_comes_first(plan_groups) -> None:
    plan, families = plan_groups(PYRAMID)
    steps = [family.col_tiles for family in families]
    assert steps == sorted(steps, reverse=True)
    assert [f.stage for f in families] == [0, *[1] * 4, *[2] * 4, *[3] * 4]
    assert (plan.warps, plan.resident) == (8, False)


def test_tiny_groups_stay_in_shared_memory(plan_groups) -> None:
    """Of 64 pixels two blocks share a multiprocessor's registers; of 169 one fills it."""
    for partition, tokens, warps, rounds in ((Blocks(8, 8), 64, 4, 1), (Strided(8, 8), 169, 8, 2)):
        plan, (family,) = plan_groups([(partition, 104, 104)])
        assert family.tokens == tokens
        assert (plan.resident, plan.queries_are_keys) == (True, True)
        assert (plan.warps, family.row_tiles) == (warps, rounds)
        assert plan.blocks == 4 * family.groups * 2  # two slices of 512 channels
    assert not plan_groups([(Strided(8, 8), 136, 264)])[0].resident  # 561 pixels


def test_few_groups_are_shared_by_blocks(plan_groups) -> None:
    """Where each group's own block would leave multiprocessors without any."""
    plan, _ = plan_groups([(Grid(2), 24, 24)], images=1, channels=(64, 64))
    assert not plan.resident
    assert plan_groups([(Grid(2), 24, 24)], images=64, channels=(64, 64))[0].resident
