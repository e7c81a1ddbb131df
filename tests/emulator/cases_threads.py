# SPDX-License-Identifier: MIT
"""What threads do together: indices, shuffles, votes, barriers, atomics, clusters."""

from functools import partial

import numpy as np

from tests.emulator.trials import Case, Trial

WARP = 32
FEW = 64
BLOCK = 128


def words(generator, *shape: int) -> np.ndarray:
    return generator.integers(0, 2**32, shape, np.uint32)


def indices(generator) -> Trial:
    blocks = 3
    block, thread = np.divmod(np.arange(blocks * FEW), FEW)
    warp, lane = np.divmod(thread, WARP)
    zeros = np.zeros_like(block)
    opaque = 2**31 + thread
    expected = np.stack([thread, block, zeros + blocks, lane, warp, zeros, opaque], axis=1)
    return Trial([np.full((blocks * FEW, 7), -1, np.int64)], {0: expected.astype(np.int64)})


def shuffle(dtype, generator) -> Trial:
    values = generator.bytes(FEW * np.dtype(dtype).itemsize)
    values = np.frombuffer(values, dtype)
    lanes = generator.integers(0, WARP, FEW, np.int32)
    first = np.arange(FEW) // WARP * WARP
    masks = np.arange(WARP)[:, None]
    picked = values[first + lanes]
    exchanged = values[np.arange(FEW) ^ masks]
    buffers = [values, lanes, np.zeros_like(picked), np.zeros_like(exchanged)]
    return Trial(buffers, {2: picked, 3: exchanged})


def vote(votes: np.ndarray | None, generator) -> Trial:
    if votes is None:
        votes = generator.integers(0, 2, FEW, np.uint32)
    by_warp = votes.reshape(-1, WARP) != 0
    ballots = (by_warp << np.arange(WARP, dtype=np.uint64)).sum(axis=1, dtype=np.uint64)
    columns = [ballots, by_warp.any(axis=1), by_warp.all(axis=1)]
    expected = [np.repeat(column, WARP).astype(np.uint32) for column in columns]
    blank = np.full(FEW, 7, np.uint32)
    return Trial([votes, blank, blank, blank], dict(enumerate(expected, 1)))


def elect(generator) -> Trial:
    ones = np.ones(FEW, np.uint32)
    return Trial([0 * ones, 0 * ones], {0: ones, 1: ones})


def exchange(group: int, step: int, generator) -> Trial:
    values = words(generator, 5, BLOCK)
    grouped = values.reshape(5, -1, group)
    expected = np.roll(grouped, -step, axis=2).reshape(values.shape)
    return Trial([values, np.zeros_like(values)], {1: expected}, [step])


def named_barrier(full: int, empty: int, generator) -> Trial:
    values = words(generator, 6, FEW)
    return Trial([values, np.zeros_like(values)], {1: values[:, ::-1].copy()}, [full, empty])


def atomics(dtype, sum_only: bool, generator) -> Trial:
    """Integers wrap around; floats stay among the integers that fp32 has."""

    def draw(*shape: int) -> np.ndarray:
        if np.issubdtype(dtype, np.unsignedinteger):
            return np.frombuffer(generator.bytes(np.prod(shape) * dtype.itemsize), dtype)
        return generator.integers(-1000, 1001, shape).astype(dtype)

    values = draw(BLOCK)
    before = draw(2 * 5).reshape(2, 5).copy()
    before[:, 1] = 0  # tickets
    after = before.copy()
    with np.errstate(over="ignore"):
        after[:, 0] += values.sum(dtype=dtype)
        after[:, 1] = BLOCK
        after[:, 3] += after[:, 4]
        if not sum_only:
            after[:, 2] = np.maximum(after[:, 2], values.max())
            after[:, 3] += values.sum(dtype=dtype)
    after[:, 4] = 0
    seen = np.zeros(2 * BLOCK, np.uint32)
    return Trial([values, before, seen], {1: after, 2: seen + 1})


def thread_fence(generator) -> Trial:
    values = words(generator, 5, FEW)
    rows = values * np.uint32(3)
    arrived = np.array([len(values)], np.uint32)
    buffers = [values, np.zeros_like(rows), np.zeros_like(arrived), np.zeros(FEW, np.uint32)]
    return Trial(buffers, {1: rows, 2: arrived, 3: rows.sum(axis=0, dtype=np.uint32)})


def cluster(size: int, generator) -> Trial:
    blocks = 8
    values = words(generator, blocks, FEW)
    rank = np.arange(blocks) % size
    first = np.arange(blocks) - rank
    after, before = first + (rank + 1) % size, first + (rank - 1) % size
    ranks = np.stack([rank, np.full(blocks, size)], axis=1).astype(np.uint32)
    counted = np.where(rank == 0, size * FEW, 0).astype(np.uint32)
    expected = [ranks, values[after, ::-1], values[before] * np.uint32(5), counted]
    buffers = [values, *(np.full_like(array, 9) for array in expected)]
    return Trial(buffers, {i: array.copy() for i, array in enumerate(expected, 1)}, [size])


def dependent_launch(links: int, generator) -> Trial:
    values = words(generator, 40 * FEW)
    buffers = [values, np.zeros_like(values)]
    expected = {}
    for link in range(links):
        values = values[::-1] * np.uint32(3) + np.uint32(1)
        expected[(link + 1) % 2] = values
    return Trial(buffers, expected, [links])


_HALVES = np.repeat(np.uint32([1, 0]), WARP)

CASES = [
    Case("indices", "indices", indices),
    *(
        Case("shuffle", f"shuffle_{name}", partial(shuffle, np.dtype(name)))
        for name in ("uint32", "uint64", "float32", "float64")
    ),
    Case("vote", "vote", partial(vote, None), "random"),
    Case("vote", "vote", partial(vote, _HALVES), "unanimous"),
    Case("elect_one", "elect_one", elect),
    *(Case("sync_warp", "sync_warp", partial(exchange, WARP, step), f"{step}") for step in (1, 17)),
    *(Case("barrier", "barrier", partial(exchange, BLOCK, step), f"{step}") for step in (1, 77)),
    Case("named barriers", "named_barrier", partial(named_barrier, 1, 2), "1-2"),
    Case("named barriers", "named_barrier", partial(named_barrier, 15, 7), "15-7"),
    *(
        Case("atomics", f"atomics_{name}", partial(atomics, np.dtype(name), name == "float32"))
        for name in ("int32", "uint32", "uint64", "float32")
    ),
    Case("thread_fence", "thread_fence", thread_fence),
    *(Case("clusters", "cluster", partial(cluster, size), f"{size}") for size in (1, 2, 4)),
    Case("dependent_launch", "dependent_launch", partial(dependent_launch, 6)),
]
