# SPDX-License-Identifier: MIT
"""Kernels with one planted fault each: the emulator must report it, and the same kernel without it
must run clean. Without its fault, every one of them doubles its data.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.native

SEEDS = range(2)
BOXES = 4 * 256  # elements of four boxes, twice as many as the ring has stages
SQUARE = 64 * 64
DEADLOCK = "deadlock: threads wait and nothing can end their waits"


@dataclass(frozen=True)
class Fault:
    """What a report must say, as a regular expression, and whom and which line it must name."""

    probe: str
    words: str
    elements: int = 64
    thread: int | None = None  # where it is always the same
    mark: str | None = None  # of the line; None: the name of the probe; "": one of several
    kernel: str | None = None  # None: the name of the probe

    def __str__(self):
        return self.probe


def _copy(probe: str, words: str, **more) -> Fault:
    return Fault(probe, words, elements=101, kernel="copies<", **more)


def _ring(probe: str, words: str, **more) -> Fault:
    return Fault(probe, words, elements=BOXES, kernel="ring<", **more)


def _cluster(probe: str, words: str, **more) -> Fault:
    return Fault(probe, words, elements=BOXES, kernel="cluster_ring<", **more)


def _store(probe: str, words: str, **more) -> Fault:
    return Fault(probe, words, elements=BOXES, thread=0, kernel="stores<", **more)


def _product(probe: str, words: str, **more) -> Fault:
    return Fault(probe, words, elements=SQUARE, **{"kernel": "square_product<", **more})


MEMORY = [
    Fault("read_past_tail", r"reads 4 bytes .*past the end of buffer 0", 50, thread=50),
    Fault("write_past_tail", r"writes 4 bytes .*past the end of buffer 1", 50, thread=50),
    Fault("read_before_start", r"reads 4 bytes .*before the start of buffer 0", thread=0),
    Fault("write_input", r"writes buffer 0, which is an input", thread=7),
    Fault("misaligned_read", r"reads 4 bytes misaligned: .*multiple of 4", thread=9),
    Fault("misaligned_vector", r"reads 16 bytes misaligned: .*multiple of 16"),
    Fault("read_past_shared", r"past the end of its shared memory \(256 bytes\)", thread=63),
    Fault("uninitialised_shared", r"reads uninitialised shared memory at \+0x[c-f]"),
    Fault("missing_barrier", r"race: writes shared memory .*read by .*a barrier"),
    Fault("early_overwrite", r"race: reads shared memory .*written by .*a barrier"),
    Fault("missing_warp_sync", r"race: writes shared memory .*read by", 32),
    Fault("shuffle_for_sync", r"race: reads shared memory .*written by|uninitialised", 32),
    Fault("overlapping_blocks", r"race: writes buffer 1 at \+0x80, written by a block"),
    Fault("missing_thread_fence", r"race: reads buffer 1 .*written by a block that ran before"),
    Fault("counted_in_place", r"race: reads buffer 2 at \+0x0, written by"),
]
WAITING = [
    Fault(
        "skipped_barrier",
        rf"{DEADLOCK}(.|\n)*threads 0-36: in bar.sync(.|\n)*thread 37: exited",
    ),
    Fault("early_read", r"reads buffer 0 .*may begin early: griddepcontrol.wait is missing"),
    Fault("unshared_wait", r"reads buffer 0 .*may begin early: griddepcontrol.wait is missing"),
    Fault("uneven_loop", rf"{DEADLOCK}(.|\n)*0-31: exited(.|\n)*32-63: in bar.sync"),
    Fault(
        "skipped_shuffle",
        rf"{DEADLOCK}(.|\n)*threads 0-4: in shfl.sync(.|\n)*thread 5: exited",
        32,
    ),
    Fault("mixed_collectives", r"(shfl|vote).sync .*waits in .*the warp diverges", 32),
    Fault("uneven_named_barrier", r"barrier 3 for \d+ threads while others use it for", 128),
    Fault(
        "missing_warp",
        rf"{DEADLOCK}(.|\n)*threads 0-95: in bar.sync \(barrier 5 of 128 threads\)",
        128,
    ),
    Fault("half_full_barrier", r"leaves barrier 2 half full .*: 32 of 64 threads have arrived"),
    Fault("early_exit", r"shared memory of block [01] of its cluster, which has exited"),
    Fault("early_remote_write", r"race: writes shared memory .*written by block [01]"),
    Fault(
        "skipped_cluster_barrier",
        rf"{DEADLOCK}(.|\n)*in barrier.cluster(.|\n)*block 1, threads 16-31: exited",
    ),
    Fault("endless_polling", rf"{DEADLOCK}(.|\n)*asking for parity 0 of the mbarrier at \+0x0"),
    Fault("endless_atomics", rf"{DEADLOCK}(.|\n)*in atom.add"),
    Fault("illegal_registers", r"setmaxnreg.dec .*24 to 256 .*got 20", 128),
    Fault("unlowered_registers", rf"{DEADLOCK}(.|\n)*setmaxnreg.inc \(9216 registers", 384),
    Fault("divided_warpgroup", rf"{DEADLOCK}(.|\n)*setmaxnreg.dec(.|\n)*96-127: exited", 128),
]
COPIES = [
    _copy("unwaited_copy", r"race: reads .*which is still in flight: its wait", mark="read_copy"),
    _copy("unshared_copy", r"race: reads .*which is still in flight", mark="read_copy"),
    _copy("uncommitted_copy", r"race: reads .*which is still in flight", mark="read_copy"),
    _copy("unwaited_count", r"race: reads .*which is still in flight: its wait", mark="read_copy"),
    _copy("copy_onto_barrier", r"cp.async .*which holds an mbarrier", thread=5, mark="copy"),
    _copy("misaligned_copy", r"cp.async .*misaligned: .*multiple of 16", thread=3, mark="copy"),
    _copy("copy_past_tail", r"reads 16 bytes .*past the end of buffer 0", thread=25, mark="copy"),
    _ring("wrong_phase", r"uninitialised|still in flight", mark="read_box"),
    _ring("unguarded_stage", r"arrives once more than the 1", thread=0, mark="expect"),
    _ring("early_release", r"race: writes shared memory .*read by", thread=0, mark="load"),
    _ring(
        "unreleased_stage",
        rf"{DEADLOCK}(.|\n)*thread 0: in mbarrier.try_wait \(parity 0 of the mbarrier at \+0x808\)"
        r"(.|\n)*threads 32-63: in mbarrier.try_wait \(parity 1 of the mbarrier at \+0x800\)"
        r"(.|\n)*mbarrier at \+0x808, phase 0 \(parity 0\): 1 of 1 arrivals",
        mark="empty_wait",
    ),
    _ring(
        "too_many_bytes",
        rf"{DEADLOCK}(.|\n)*phase 0 \(parity 0\): 0 of 1 arrivals and 16 bytes missing",
        mark="full_wait",
    ),
    _ring(
        "too_few_bytes",
        rf"{DEADLOCK}(.|\n)*phase 0 \(parity 0\): 0 of 1 arrivals and -16 bytes missing",
        mark="full_wait",
    ),
    _ring("extra_arrival", r"arrives once more than the 1 .*0 of 1 arrivals", thread=0),
    _ring("unfenced_mbarrier", r"without a fence.mbarrier_init", thread=0, mark="load"),
    _ring("unshared_mbarrier", r"a barrier has told|no mbarrier was initialised", mark=""),
    _ring("uninitialised_mbarrier", r"\+0x800, where no mbarrier was initialised", mark=""),
    _ring("overwritten_barrier", r"writes .*\+0x800, which holds an mbarrier", thread=40),
    _ring("misplaced_box", r"\+0x40, which must be aligned to", thread=0, mark="load"),
    _ring("unread_box", r"never waited for", thread=0, mark="load"),
    _ring("map_past_tail", r"reads .*past the end of buffer 0", thread=0, mark="load"),
    _store("unfenced_box", r"without a fence.proxy.async", mark="store"),
    _store("reused_box", r"race: reads shared memory .*written by", mark="fill_box"),
    _store("read_back", r"race: reads buffer 1 .*still in flight: its wait"),
    _store("unwaited_box", r"when the thread exits: cp.async.bulk.wait_group", mark="store"),
]
CLUSTERS = [
    _cluster("own_arrivals", r"race: (reads|writes) shared memory", mark="cluster_load"),
    _cluster(
        "own_barrier_only",
        rf"{DEADLOCK}(.|\n)*block 0, mbarrier(.|\n)*1 of 2 arrivals(.|\n)*block 1, mbarrier",
        mark="cluster_empty_wait",
    ),
    _cluster("block_barrier", r"a barrier has told|no mbarrier was initialised", mark=""),
    _cluster("early_cluster_exit", r"its cluster, which (has|may have)", mark="cluster_arrive"),
]
PRODUCTS = [
    _product("unwaited_product", r"in flight writes: wgmma.wait_group", mark="read_sums"),
    _product("uncommitted_product", r"in flight writes: wgmma.wait_group", mark="read_sums"),
    _product("unfenced_sums", r"without a wgmma.fence before it", mark="product"),
    _product("early_fence", r"touched since its latest wgmma.fence", mark="product"),
    _product("unfenced_tile", r"without a fence.proxy.async", mark="product"),
    _product("unshared_tile", r"race: reads|uninitialised", mark="product"),
    _product("rewritten_tile", r"race: reads .*\+0x1404, written by .*thread 5 "),
    _product("shifted_tile", r"illegal descriptor: .*1024-byte atom", mark="product"),
    _product("tile_past_shared", r"past the end of shared memory", mark="product"),
    _product("divergent_descriptors", r"other descriptors in thread (0|64)", mark="product"),
    _product("late_operand", r"touched since its latest wgmma.fence", kernel="register_product<"),
    _product("rewritten_operand", r"in flight reads: wgmma.wait_group", kernel="register_product<"),
]
REPORTED = [*MEMORY, *WAITING, *COPIES, *CLUSTERS, *PRODUCTS]
# What no rule forbids shows in the result.
WRONG = [_ring("unswizzled_box", ""), _product("unswizzled_tile", ""), _product("unset_sums", "")]
# Met under some schedules: a word remembers its two latest readers.
SOMETIMES = [Fault("partial_barrier", r"race: (reads|writes) shared memory", 96)]


def _marked_lines() -> dict[str, str]:
    lines = {}
    for path in sorted(Path(__file__).parent.glob("fault_probes*.cuh")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if found := re.search(r"// fault: (\w+)", line):
                assert found[1] not in lines
                lines[found[1]] = f"tests/emulator/{path.name}:{number}"
    return lines


MARKED_LINES = _marked_lines()


def _run(emulator, fault: Fault, planted: bool, seed: int) -> bool:
    """Run a probe; tell whether its result is right."""
    data = np.random.default_rng(seed).integers(-8, 9, fault.elements).astype(np.float32)
    data.flags.writeable = False
    result = np.full(fault.elements, np.nan, np.float32)
    emulator.configure(seed=seed)
    emulator.run_probe(fault.probe, [data, result, np.zeros(1, np.uint32)], [int(planted)])
    return np.array_equal(result, 2 * data)


def _report(emulator, fault: Fault, seed: int) -> str:
    with pytest.raises(RuntimeError) as caught:
        _run(emulator, fault, True, seed)
    return str(caught.value)


@pytest.mark.parametrize("fault", REPORTED, ids=str)
def test_fault_is_reported(emulator, fault):
    for seed in SEEDS:
        text = _report(emulator, fault, seed)
        assert re.search(fault.words, text), text
        assert f"kernel ocnet::probes::faults::{fault.kernel or fault.probe}" in text
        assert re.search(r"block \d+, thread", text)
        if fault.thread is not None:
            assert f", thread {fault.thread} (warp {fault.thread // 32}, lane" in text
        mark = fault.probe if fault.mark is None else fault.mark
        line = MARKED_LINES[mark] if mark else "tests/emulator/fault_probes"
        assert re.search(re.escape(line) + r"(?!\d)", text), text


@pytest.mark.parametrize("fault", [*REPORTED, *WRONG, *SOMETIMES], ids=str)
def test_runs_clean_without_its_fault(emulator, fault):
    for seed in SEEDS:
        assert _run(emulator, fault, False, seed)


@pytest.mark.parametrize("fault", WRONG, ids=str)
def test_fault_shows_in_the_result(emulator, fault):
    for seed in SEEDS:
        assert not _run(emulator, fault, True, seed)


@pytest.mark.parametrize("fault", SOMETIMES, ids=str)
def test_fault_is_reported_under_some_schedule(emulator, fault):
    reports = []
    for seed in range(8):
        try:
            _run(emulator, fault, True, seed)
        except RuntimeError as error:
            reports.append(str(error))
    assert reports
    for text in reports:
        assert re.search(fault.words, text), text
        assert MARKED_LINES[fault.mark or fault.probe] in text


@pytest.mark.parametrize("limit", [232448, 99 * 1024])
def test_shared_memory_over_the_limit(emulator, limit):
    emulator.configure(shared_limit=limit)
    data = np.ones(8, np.float32)
    result = np.full(8, np.nan, np.float32)
    buffers = [data, result, np.zeros(1, np.uint32)]
    emulator.run_probe("shared_limit", buffers, [0])
    np.testing.assert_array_equal(result, 2 * data)
    with pytest.raises(RuntimeError, match=rf"read_past_tail .*at most {limit} bytes .*limit, got"):
        emulator.run_probe("shared_limit", buffers, [1])


# Offset of the data, columns, bytes from row to row, columns and rows of the box, swizzle.
LEGAL_MAP = {"offset": 0, "columns": 64, "pitch": 128, "box": 64, "rows": 4, "swizzle": 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"offset": 8}, "data aligned to 16 bytes"),
        ({"columns": 0}, "elements of axis 0, got 0"),
        ({"pitch": 136}, "a stride that is a multiple of 16 bytes .*of axis 1, got 136"),
        ({"box": 257}, "a box of 1 to 256 elements of axis 0, got 257"),
        ({"rows": 257}, "a box of 1 to 256 elements of axis 1, got 257"),
        ({"rows": 0}, "a box of 1 to 256 elements of axis 1, got 0"),
        ({"box": 60}, "box rows that are a multiple of 16 bytes, got 120"),
        ({"box": 72}, "box rows of 128 bytes for the swizzle, got 144"),
    ],
    ids=str,
)
def test_rules_of_tensor_maps(emulator, change, words):
    room = np.zeros(4096, np.uint8)
    start = -room.ctypes.data % 128
    memory = room[start : start + 2048]
    emulator.run_probe("tensor_map", [memory], list(LEGAL_MAP.values()))
    with pytest.raises(RuntimeError, match=f"fault probe: tensor map must have .*{words}"):
        emulator.run_probe("tensor_map", [memory], list({**LEGAL_MAP, **change}.values()))


def test_every_probe_is_tested(emulator):
    table = (Path(__file__).parent / "fault_probes.cuh").read_text()
    probes = set(re.findall(r'^\s*\{"(\w+)",', table, re.MULTILINE))
    others = {"shared_limit", "tensor_map", "tickets", "ordered_events"}
    assert probes == {fault.probe for fault in [*REPORTED, *WRONG, *SOMETIMES]} | others
