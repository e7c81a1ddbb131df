# SPDX-License-Identifier: MIT
"""How the backward kernels on Hopper's own instructions share their work: workers, and cut tiles.

A worker has two multiprocessors. It owns 128 keys or shared tokens of a tile, or 256 queries, or 256
shared tokens of at most 128 channels; a step streams 64 tokens past them, or 48 if they are more than 64.
"""

import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor

from tests.ops.hopper_backward import Backward, each_precision
from tests.ops.test_cuda_backward import (
    Call,
    assert_below_gates,
    assert_near,
    assert_same_bits,
    complete_call,
    make_call,
)

pytestmark = pytest.mark.native


@pytest.fixture(params=["emulated"])
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


def ranges(tiles: int, steps: int, workers: int) -> list[tuple[int, int]]:
    """The steps of all tiles, one after the other, in ranges of equal length; longer ones first."""
    length, longer = divmod(tiles * steps, workers)
    cuts = [length * worker + min(worker, longer) for worker in range(workers + 1)]
    return list(itertools.pairwise(cuts))


def parts_of_tiles(tiles: int, steps: int, workers: int) -> list[int]:
    touched = Counter()
    for first, end in ranges(tiles, steps, workers):
        touched.update({step // steps for step in range(first, end)})
    return [touched[tile] for tile in range(tiles)]


def assert_near_whole(call: Call, split: dict[str, Tensor], whole: dict[str, Tensor]) -> None:
    """Sums of fp32 in another order, then one rounding to the storage type."""
    for name, grad in split.items():
        step = torch.finfo(grad.dtype).eps + 1000 * torch.finfo(torch.float32).eps
        largest = whole[name].double().abs().max()
        assert (grad.double() - whole[name].double()).abs().max() <= step * largest, name


# What is wanted, images, queries, keys, workers on the device, and how many tiles are then summed by
# how many of them.
CUTS = [
    ("kv", 1, 640, 20, 2, {2: 1}),
    ("kv", 1, 640, 20, 3, {3: 1}),
    ("kv", 1, 650, 20, 66, {11: 1}),  # a worker for every step
    ("kv", 3, 640, 20, 2, {1: 2, 2: 1}),  # fewer workers than tiles
    ("kv", 2, 1024, 20, 3, {2: 2}),
    ("q", 1, 20, 640, 2, {2: 1}),
    ("q", 3, 20, 640, 2, {1: 2, 2: 1}),
    ("q", 1, 20, 650, 66, {11: 1}),
]


@pytest.mark.parametrize(("wanted", "images", "queries", "keys", "workers", "parts"), CUTS)
def test_cut_tiles(
    hopper_backward: Backward, emulator, wanted, images, queries, keys, workers, parts
) -> None:
    call = make_call("float16", images, queries, keys, 16, 24)
    owned, streamed, rows = (queries, keys, 256) if wanted == "q" else (keys, queries, 128)
    tiles, steps = images * -(-owned // rows), -(-streamed // 64)
    busy = min(workers, tiles * steps)
    assert Counter(parts_of_tiles(tiles, steps, busy)) == parts
    assert_cut(hopper_backward, emulator, call, wanted, workers, busy, rows)


# What is wanted, images, tokens, values, workers, steps of a tile; and tiles and their parts, as above.
SHARED_CUTS = [
    ("qv", 1, 390, 130, 14, 7, {4: 4}),
    ("qv", 1, 390, 24, 8, 7, {4: 1, 5: 1}),
    ("qv", 1, 290, 72, 9, 7, {4: 1, 6: 1}),
    pytest.param("v", 1, 390, 24, 14, 7, {4: 4}, marks=pytest.mark.slow),
    pytest.param("qv", 1, 390, 130, 66, 7, {7: 4}, marks=pytest.mark.slow),
    pytest.param("qv", 1, 390, 24, 66, 7, {7: 2}, marks=pytest.mark.slow),
    pytest.param("qv", 1, 580, 130, 4, 10, {1: 2, 2: 3}, marks=pytest.mark.slow),
    pytest.param("qv", 2, 450, 130, 30, 8, {3: 1, 4: 7}, marks=pytest.mark.slow),
    pytest.param("qv", 2, 450, 24, 30, 8, {6: 1, 8: 3}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(
    ("wanted", "images", "tokens", "values", "workers", "steps", "parts"), SHARED_CUTS
)
def test_cut_tiles_of_shared_tokens(
    hopper_backward: Backward, emulator, wanted, images, tokens, values, workers, steps, parts
) -> None:
    call = make_call("float16", images, tokens, None, 16, values)
    rows = 256 if "q" in wanted and values <= 128 else 128
    tiles = images * -(-tokens // rows)
    busy = min(workers, tiles * steps)
    assert Counter(parts_of_tiles(tiles, steps, busy)) == parts
    assert_cut(hopper_backward, emulator, call, wanted, workers, busy, rows)


def assert_cut(
    backward: Backward, emulator, call: Call, wanted: str, workers: int, busy: int, rows: int
) -> None:
    """Among so many workers; right, in any order, and as near as can be to whole tiles."""
    emulator.configure(multiprocessors=2 * workers)
    split = backward(call, wanted)
    _, main, combine = emulator.launches()
    assert main.blocks == 2 * busy
    assert combine.blocks == (busy - 1) * rows // 8
    assert_near(call, split, "float16")
    emulator.configure(multiprocessors=2 * workers, seed=7)
    assert_same_bits(backward(call, wanted, "nchw"), split)
    emulator.configure(multiprocessors=2)
    whole = backward(call, wanted)
    assert not any("combine" in launch.kernel for launch in emulator.launches())
    assert_near_whole(call, split, whole)


@pytest.mark.slow
@each_precision
@pytest.mark.parametrize("channels", [(64, 64), (100, 128), (128, 200), (256, 250)], ids=str)
def test_cut_tiles_of_any_width(hopper_backward, emulator, channels, precision: str) -> None:
    for sizes in ((1, 390, None), (1, 600, 90), (1, 90, 600)):
        call = make_call(precision, *sizes, *channels)
        emulator.configure(multiprocessors=28)
        assert_below_gates(call, hopper_backward(call), precision)
        assert any("combine" in launch.kernel for launch in emulator.launches())


@pytest.mark.parametrize("wanted", ["v", "k", "kv"])
def test_gradients_of_cut_tiles_do_not_depend_on_what_else_is_wanted(
    hopper_backward, emulator, wanted: str
) -> None:
    emulator.configure(multiprocessors=6)
    call = make_call("bfloat16", 1, 640, 20, 16, 24)
    every, some = hopper_backward(call, "kv"), hopper_backward(call, wanted)
    assert_same_bits(some, {name: every[name] for name in some})


def test_parts_are_added_in_the_order_of_the_streamed_tokens(hopper_backward, emulator) -> None:
    """2^40, -2^40 and 1, in a part each, are 1 in that order and nothing in the other."""
    generator = torch.Generator().manual_seed(1)
    query = torch.zeros(1, 640, 8, dtype=torch.bfloat16)
    value = torch.randn(1, 4, 8, generator=generator).bfloat16()
    grad_out = torch.zeros(1, 640, 8, dtype=torch.bfloat16)
    grad_out[0, 5], grad_out[0, 300], grad_out[0, 600] = 2.0**40, -(2.0**40), 1
    call = complete_call(query, query[:, :4].clone(), value, grad_out, 1.0)
    emulator.configure(multiprocessors=6)
    grad = hopper_backward(call, "v")["grad_value"]
    assert ranges(1, 10, 3) == [(0, 4), (4, 7), (7, 10)]
    assert sum("combine" in launch.kernel for launch in emulator.launches()) == 1
    # Weights are exp2 of rounded numbers.
    assert float((grad - 0.25).abs().max()) <= 2.0**-9


@pytest.mark.parametrize("multiprocessors", [1, 2, 3])
def test_one_worker(hopper_backward, emulator, multiprocessors: int) -> None:
    """Tile after tile, each of another parity; a device may have no second pair of them."""
    emulator.configure(multiprocessors=multiprocessors)
    for keys in (None, 130):
        call = make_call("float16", 2, 129, keys, 16, 24)
        assert_near(call, hopper_backward(call), "float16")
    blocks = [launch.blocks for launch in emulator.launches() if "Tile" in launch.kernel]
    assert blocks == [2, 2, 2]


@pytest.mark.parametrize("keys", [None, 5], ids=["shared", "separate"])
def test_jobs_of_one_step(hopper_backward, emulator, keys) -> None:
    """Of five images, one after the other: nothing is left of the job before."""
    emulator.configure(multiprocessors=2)
    call = make_call("float16", 5, 9, keys, 16, 24)
    grads = hopper_backward(call)
    assert_near(call, grads, "float16")
    emulator.configure()
    assert_same_bits(hopper_backward(call), grads)
    assert {launch.blocks for launch in emulator.launches() if "Tile" in launch.kernel} == {10}
