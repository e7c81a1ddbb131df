# SPDX-License-Identifier: MIT
"""How launches of the CUDA attention are cut into blocks: arithmetic of sizes, without a launch."""

import math

import pytest

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
