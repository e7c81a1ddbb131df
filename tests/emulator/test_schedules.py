# SPDX-License-Identifier: MIT
"""Seeds permute blocks, warps and threads: correct results do not show it. Traces do."""

import re

import numpy as np
import pytest

from tests.emulator.test_tiled_product import run_case

pytestmark = pytest.mark.native

SEEDS = range(8)
BOX = 256


@pytest.mark.parametrize(
    "case",
    [
        "80_channels_channels",
        "64_tokens_tokens_cluster",
        "64_tokens_tokens_registers",
        "64_channels_channels_small",
    ],
)
def test_same_bits_under_every_schedule(emulated, case):
    results = set()
    for seed in SEEDS:
        emulated.module.configure(seed=seed)
        results.add(run_case(emulated, case, 131, 90, 200).room.tobytes())
    assert len(results) == 1


def _draw_tickets(emulator, seed: int) -> np.ndarray:
    result = np.full(256, np.nan, np.float32)
    emulator.configure(seed=seed)
    emulator.run_probe("tickets", [np.zeros(256, np.float32), result, np.zeros(1, np.uint32)], [1])
    return result


def test_order_shows_in_a_kernel_that_depends_on_it(emulator):
    drawn = [_draw_tickets(emulator, seed) for seed in SEEDS]
    for tickets in drawn:
        np.testing.assert_array_equal(np.sort(tickets), np.arange(256))
    assert len({tickets.tobytes() for tickets in drawn}) == len(SEEDS)
    first_block = {int(tickets.argmin()) // 64 for tickets in drawn}
    assert len(first_block) > 1
    # Within a block, warps and their threads run in no fixed order.
    assert any((np.diff(tickets[:64]) < 0).any() for tickets in drawn)


def test_a_seed_repeats_its_schedule(emulator):
    np.testing.assert_array_equal(_draw_tickets(emulator, 5), _draw_tickets(emulator, 5))


def _trace(emulator, traced_block: int) -> list[str]:
    data = np.arange(3 * BOX, dtype=np.float32)
    result = np.full(3 * BOX, np.nan, np.float32)
    emulator.configure(seed=1, traced_block=traced_block)
    emulator.run_probe("ordered_events", [data, result, np.zeros(1, np.uint32)], [0])
    np.testing.assert_array_equal(result, 2 * data)
    return emulator.trace()


def _position(lines: list[str], words: str) -> int:
    found = [index for index, line in enumerate(lines) if re.search(words, line)]
    assert len(found) == 1, (words, lines)
    return found[0]


def test_trace_lists_the_events_of_a_block_in_order(emulator):
    lines = _trace(emulator, 1)
    events = [
        "tensor load of 1024 bytes to .0x0 is issued",
        "mbarrier at .0x400.*: phase 0 is complete",
        "print: row 8 doubled",
    ]
    positions = [_position(lines, words) for words in events]
    assert positions == sorted(positions)
    barriers = [index for index, line in enumerate(lines) if "bar.sync" in line]
    assert len(barriers) == 2
    assert barriers[0] < positions[0]
    assert positions[-1] < barriers[1]
    for line in lines:
        if "print" not in line:
            assert line.startswith("block 1, thread ")


def test_nothing_but_prints_is_listed_without_a_traced_block(emulator):
    lines = _trace(emulator, -1)
    assert sorted(lines) == [
        f"block {block}, thread 3 (warp 0, lane 3): print: "
        f"row {8 * block} doubled, {BOX * block + 3:.1f} first"
        for block in range(3)
    ]


def test_configuring_forgets_traces_and_launches(emulator):
    assert _trace(emulator, 0)
    assert [launch.kernel for launch in emulator.launches()] == [
        "ocnet::probes::faults::ordered_events"
    ]
    launch = emulator.launches()[0]
    assert (launch.blocks, launch.threads, launch.cluster_blocks) == (3, 32, 1)
    assert launch.shared_bytes == 1024 + 8
    emulator.configure()
    assert emulator.trace() == []
    assert emulator.launches() == []
