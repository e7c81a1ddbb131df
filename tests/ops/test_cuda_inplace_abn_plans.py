# SPDX-License-Identifier: MIT
"""How maps of in-place ABN are dealt to blocks: arithmetic of sizes, without a launch."""

import itertools

import numpy as np
import pytest

pytestmark = pytest.mark.native

KB = 1024
# What a block may have on sm_86, 89 and 120; on sm_80; on sm_90, which has clusters.
DEVICES = [(99 * KB, False), (163 * KB, False), (227 * KB, True)]
WIDTHS = [2, 4, 8]  # fp64, fp32, 16 bits
PLANES = [
    (1, 1, 1), (1, 3, 2), (3, 2, 7), (2, 3, 49), (7, 1, 64), (2, 2, 1485), (5, 1, 4096),
    (1, 2, 20000), (40, 1, 513), (2, 1, 40001),
]  # fmt: skip


def numbers_of(cut, width: int, channel: int, part: int) -> np.ndarray:
    """Return the numbers of the map that a part of a channel has, in the order of its slots."""
    slots = cut.share(channel, part)[4]
    found = [cut.slot(width, channel, part, index) for index in range(slots)]
    assert all(at % width == 0 for at, mask in found if mask)
    return np.array([at + j for at, mask in found for j in range(width) if mask >> j & 1], np.int64)


def assert_dealt(cut, shape: tuple[int, int, int], width: int) -> None:
    """Assert that parts have the numbers of their channel, each once, and say how many."""
    images, channels, length = shape
    everything = np.arange(images * channels * length).reshape(shape)
    for channel in {0, channels - 1}:
        parts = [numbers_of(cut, width, channel, part) for part in range(cut.parts)]
        for part, numbers in enumerate(parts):
            _, _, runs, run, _ = cut.share(channel, part)
            assert len(numbers) == runs * run
        np.testing.assert_array_equal(
            np.sort(np.concatenate(parts)), everything[:, channel].ravel()
        )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shape", PLANES, ids=str)
def test_parts_of_planes_have_each_number_once(emulator, shape, width: int) -> None:
    cut = emulator.abn_cut_stream(*shape, width)
    assert_dealt(cut, shape, width)
    assert cut.blocks == shape[1] * cut.parts


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shape", PLANES, ids=str)
@pytest.mark.parametrize("limit", [4, 8, 16, 99])
def test_blocks_of_a_channel_have_each_number_once(emulator, shape, width: int, limit) -> None:
    for maps, clusters in itertools.product((1, 2, 3), (True, False)):
        plan = emulator.abn_plan_slab(*shape, width, maps, limit * KB, clusters)
        if plan.cluster == 0:
            continue
        assert plan.cluster in ((1, 2, 4, 8) if clusters else (1,))
        assert plan.cut.parts <= plan.cluster
        assert_dealt(plan.cut, shape, width)
        slots = max(plan.cut.share(0, part)[4] for part in range(plan.cut.parts))
        assert slots <= plan.team_slots
        assert 384 + plan.teams * maps * 16 * plan.team_slots == plan.shared_bytes <= limit * KB
        assert plan.teams * plan.team_threads in (32, 128, 256, 512)
        assert plan.blocks == plan.cluster * -(-shape[1] // plan.teams)


def test_enough_parts_and_not_too_many(emulator) -> None:
    """About two waves of four blocks on each multiprocessor, where parts do not get too short."""
    for images, channels, length, width in itertools.product(
        (1, 2, 8, 32, 333), (1, 19, 64, 512, 2048), (49, 784, 9409, 12544), WIDTHS
    ):
        cut = emulator.abn_cut_stream(images, channels, length, width)
        shortest = 256 * 4 * width
        most = -(-images * length // shortest)
        assert cut.parts <= max(2 * most, images)
        wanted = min(-(-1056 // channels), most)
        assert wanted / 2 <= cut.parts <= 2 * wanted + images * (wanted > images)


def test_the_parts_do_not_depend_on_channels_that_fill_the_device(emulator) -> None:
    assert emulator.abn_cut_stream(32, 2048, 784, 8).parts == 1
    assert emulator.abn_cut_stream(32, 64, 12544, 8).parts == 16


# Batch, channels, side, bytes of a number: blocks of a channel forward, and backward with two maps.
PUBLISHED = [
    ((32, 64, 112, 2), 8, 8), ((32, 256, 56, 2), 2, 4), ((32, 512, 28, 2), 1, 1),
    ((32, 1024, 14, 2), 1, 1), ((32, 2048, 7, 2), 1, 1), ((8, 64, 97, 2), 4, 4),
    ((8, 512, 97, 2), 2, 4), ((8, 512, 97, 4), 4, 8), ((2, 64, 65, 4), 4, 4),
]  # fmt: skip


@pytest.mark.parametrize(("sizes", "forward", "backward"), PUBLISHED, ids=str)
def test_published_maps_stay_on_chip(emulator, sizes, forward: int, backward: int) -> None:
    images, channels, side, itemsize = sizes
    plans = [
        emulator.abn_plan_slab(images, channels, side**2, 16 // itemsize, maps, 227 * KB, True)
        for maps in (1, 2)
    ]
    assert [plan.cluster for plan in plans] == [forward, backward]


@pytest.mark.parametrize(("limit", "clusters"), DEVICES)
def test_a_device_gets_what_it_has(emulator, limit: int, clusters: bool) -> None:
    for images, channels, length, width, maps in itertools.product(
        (1, 8, 32), (19, 64, 2048), (49, 784, 9409, 12544, 33153), WIDTHS, (1, 2, 3)
    ):
        plan = emulator.abn_plan_slab(images, channels, length, width, maps, limit, clusters)
        whole = images * length * (16 // width) * maps
        if plan.cluster == 0:
            # With vectors at the edges of planes, and parts that are not quite equal.
            assert whole > 0.85 * (limit - 384) * (8 if clusters else 1)
        else:
            assert plan.shared_bytes <= limit
            assert plan.cluster == 1 or clusters
            assert plan.blocks < 2**31
        # Two blocks on a multiprocessor wherever more blocks make it possible.
        if 1 < plan.cluster < 8:
            assert plan.shared_bytes <= limit // 2 - KB


def test_tiny_channels_have_a_warp_each(emulator) -> None:
    plan = emulator.abn_plan_slab(8, 2048, 49, 8, 1, 227 * KB, True)
    assert (plan.cluster, plan.teams, plan.team_threads) == (1, 4, 32)
    assert plan.blocks == 512
    assert emulator.abn_plan_slab(8, 2047, 49, 8, 1, 227 * KB, True).blocks == 512
    assert emulator.abn_plan_slab(32, 2048, 49, 8, 1, 227 * KB, True).teams == 1


def test_few_channels_are_shared_by_blocks(emulator) -> None:
    """Where a block each would leave multiprocessors without any."""
    assert emulator.abn_plan_slab(8, 32, 3136, 8, 1, 227 * KB, True).cluster == 4
    assert emulator.abn_plan_slab(8, 512, 3136, 8, 1, 227 * KB, True).cluster == 1


def test_planes_beyond_32_bits(emulator) -> None:
    """Offsets of planes and segments that lie past 2^31 numbers, and past 2^32."""
    images, channels, length = 6, 3, 2**29 + 5
    cut = emulator.abn_cut_stream(images, channels, length, 8)
    assert cut.blocks < 2**31
    total = 0
    for part in range(cut.parts):
        first, step, runs, run, slots = cut.share(2, part)
        total += runs * run
        assert slots < 2**24
        assert step == channels * length
        image, segment = divmod(part, cut.segments)
        start = (image * channels + 2) * length + segment * cut.segment
        assert first == start
        at, mask = cut.slot(8, 2, part, 0)
        assert at == start // 8 * 8
        assert mask == 0xFF & 0xFF << start % 8
    assert total == images * length
    grouped = emulator.abn_cut_stream(2**20, 2**13, 64, 4)
    first, step, runs, run, slots = grouped.share(2**13 - 1, grouped.parts - 1)
    last = first + (runs - 1) * step + run
    assert last == 2**39
    assert grouped.slot(4, 2**13 - 1, grouped.parts - 1, slots - 1) == (last - 4, 0xF)


def test_what_no_cluster_holds_has_no_plan(emulator) -> None:
    assert emulator.abn_plan_slab(2**20, 1, 2**20, 8, 1, 227 * KB, True).cluster == 0


# --- rows ---

ROWS = [(1, 1), (5, 3), (8, 7), (45, 7), (9, 64), (300, 12), (40, 200), (3, 4099), (2100, 1)]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_parts_of_rows_have_each_number_once(emulator, shape, width: int) -> None:
    rows, channels = shape
    cut = emulator.abn_cut_rows(rows, channels, width)
    assert cut.blocks == cut.parts * cut.tiles
    assert 16 <= cut.lanes <= 256 // cut.columns
    assert cut.tiles * cut.columns >= cut.vectors > (cut.tiles - 1) * cut.columns
    counts = np.zeros((cut.parts, cut.repeats), np.int64)
    seen = np.zeros(rows * channels, np.int64)
    for part in range(cut.parts):
        for row, column in itertools.product(
            range(cut.first_row(part), cut.end_row(part)), range(cut.vectors)
        ):
            at, mask = cut.slot(width, row, column)
            whole = row < cut.end_of_whole(part, column)
            assert whole == (mask == (1 << width) - 1)
            for j in (j for j in range(width) if mask >> j & 1):
                channel, repeat = cut.channel_at(column * width + j)
                assert (at + j) % channels == channel
                seen[at + j] += 1
                counts[part, repeat] += channel == 0
    assert (seen == 1).all()
    for part, repeat in itertools.product(range(cut.parts), range(cut.repeats)):
        assert cut.count(part, repeat) == counts[part, repeat]


def test_rows_beyond_32_bits(emulator) -> None:
    rows, channels = 2**31 + 3, 7
    cut = emulator.abn_cut_rows(rows, channels, 8)
    assert (cut.repeats, cut.vectors, cut.super_rows) == (8, 7, 2**28 + 1)
    assert cut.slot(8, 2**28, 1) == (2**31 * 7 + 8, 0xFF)
    assert cut.slot(8, 2**28, 2) == (2**31 * 7 + 16, 0b11111)
    assert cut.slot(8, 2**28, 3)[1] == 0
    last = cut.parts - 1
    assert cut.end_row(last) == cut.super_rows
    total = sum(cut.count(p, r) for p in range(cut.parts) for r in range(cut.repeats))
    assert total == rows


def test_rows_of_published_maps(emulator) -> None:
    for channels, width, tiles in ((64, 8, 1), (256, 8, 2), (2048, 8, 16), (512, 4, 8), (19, 8, 2)):
        cut = emulator.abn_cut_rows(8 * 97 * 97, channels, width)
        assert cut.tiles == tiles
        assert cut.columns * 16 <= 256
        # Eight vectors for each thread, or four blocks for each multiprocessor.
        assert cut.blocks >= min(528, 0.9 * cut.super_rows * cut.vectors / 256 / 8)
        assert cut.blocks <= 528 + cut.tiles
