# SPDX-License-Identifier: MIT
"""Copies by threads, and mbarriers: their phases, arrivals and bytes."""

from functools import partial

import numpy as np

from tests.emulator.cases_threads import WARP, words
from tests.emulator.trials import Case, Trial

THREADS = 64
GROUPS = 3
PIECE = 32  # words


def copy_async(piece: int, by_mbarrier: bool, generator) -> Trial:
    """Pieces of a source whose last one is cut short; what is not copied becomes 0."""
    tail = piece // 2
    source = generator.integers(1, 256, 40 * piece + tail, np.uint8)
    index = generator.integers(0, 41, (GROUPS, THREADS))
    valid = generator.integers(0, piece + 1, index.shape, np.int32)
    index[0, :2], valid[0, :2] = 40, (tail, 0)
    valid[(index == 40) & (valid > tail)] = tail
    expected = np.zeros((*index.shape, piece), np.uint8)
    for at in np.ndindex(*index.shape):
        start = index[at] * piece
        expected[at][: valid[at]] = source[start : start + valid[at]]
    image = generator.integers(1, 256, expected.size, np.uint8).view(np.uint32)
    expected = expected.reshape(-1).view(np.uint32)
    offsets = (index * piece).astype(np.int32)
    buffers = [source, offsets, valid, image, np.zeros_like(expected)]
    return Trial(buffers, {4: expected}, [by_mbarrier])


ARRIVE, ARRIVE_EXPECT, EXPECT, TEST, WAIT, LOAD = range(6)


class Script:
    """Steps of one thread at an mbarrier, and what its tests find.

    A phase ends when its arrivals are in and as many bytes as it expects. Bytes come when the copy
    engine likes, so tests are made only where they decide nothing.
    """

    def __init__(self, generator, arrivals: int):
        self.generator = generator
        self.arrivals = arrivals
        self.phase = 0
        self.steps: list[tuple[int, int]] = []
        self.found: list[int] = []

    def add(self, step: int, operand: int = 0, found: int = 0) -> None:
        self.steps.append((step, operand))
        self.found.append(found)

    def test(self) -> None:
        """The latest phase of one parity is complete, that of the other is not."""
        parity = int(self.generator.integers(0, 2))
        self.add(TEST, parity, int(parity != self.phase % 2))

    def run_phase(self, pieces: list[int]) -> None:
        due = 4 * PIECE * len(pieces)
        begun = [(LOAD, piece) for piece in pieces] + [(ARRIVE, 0)] * (self.arrivals - 1)
        while due > 0 and self.generator.random() < 0.7:
            part = int(self.generator.integers(1, due + 1))
            begun.append((EXPECT, part))
            due -= part
        self.generator.shuffle(begun)
        for step, operand in begun:
            if step == ARRIVE and due > 0 and self.generator.random() < 0.5:
                self.add(ARRIVE_EXPECT, due)
                due = 0
            else:
                self.add(int(step), int(operand))
            self.test()
        if due > 0:
            self.add(ARRIVE_EXPECT, due)
        else:
            self.add(ARRIVE)
        self.add(WAIT, self.phase % 2)
        self.phase += 1
        self.test()


def mbarrier(arrivals: int, generator) -> Trial:
    phases = 6
    source = words(generator, 8, PIECE)
    phase_of = generator.integers(0, phases, len(source))
    script = Script(generator, arrivals)
    script.test()
    for phase in range(phases):
        script.run_phase(np.flatnonzero(phase_of == phase).tolist())
    steps = np.array(script.steps, np.int32)
    found = np.array(script.found, np.int32)
    buffers = [steps, source, np.full_like(found, -1), np.zeros_like(source)]
    return Trial(buffers, {2: found, 3: source}, [arrivals])


def ring(generator) -> Trial:
    values = words(generator, 7, WARP)
    reused = values[0, :8].copy()
    buffers = [values, np.zeros_like(values), np.zeros_like(reused)]
    return Trial(buffers, {1: values[:, ::-1].copy(), 2: reused})


def remote(blocks: int, generator) -> Trial:
    values = words(generator, 5, blocks, WARP)
    received = np.roll(values, 1, axis=1)[:, :, ::-1].copy()
    return Trial([values, np.zeros_like(values)], {1: received}, [blocks, blocks])


CASES = [
    *(
        Case(name, f"copy_async_{piece}", partial(copy_async, piece, by_mbarrier), variant)
        for piece in (4, 8, 16)
        for name, by_mbarrier, variant in (
            ("copy_async", 0, "groups"),
            ("copy_async_arrive", 1, "mbarrier"),
        )
    ),
    *(Case("mbarrier", "mbarrier", partial(mbarrier, count), f"{count}") for count in (1, 2, 5)),
    Case("mbarrier", "mbarrier_ring", ring),
    *(
        Case("mbarrier_arrive_cluster", "mbarrier_remote", partial(remote, blocks), f"{blocks}")
        for blocks in (2, 4)
    ),
]
