# SPDX-License-Identifier: MIT
"""The backward kernels on Hopper's own instructions at the level of the native op, without groups.

Output and lse come from float64. Operands lie among NaN: what is behind the last token or channel
never reaches a gradient.
"""

import pytest

from tests.ops.hopper_backward import Backward, each_precision, each_sharing, tiles_of
from tests.ops.test_cuda_backward import (
    assert_below_gates,
    assert_near,
    assert_same_bits,
    make_call,
    only_emulated,
)

pytestmark = pytest.mark.native

TILES = [(64, 64), (128, 128), (128, 256), (256, 256)]
each_tile = pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile[0]}x{tile[1]}")


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


# --- tiles, and where they end ---


@only_emulated
@each_precision
@each_sharing
@each_tile
def test_every_tile(hopper_backward: Backward, emulator, tile, keys, precision: str) -> None:
    """Filled by the channels, with a step that is full and one that is not."""
    call = make_call(precision, 1, 70, keys and 75, *tile)
    assert_below_gates(call, hopper_backward(call), precision)
    roles = ["both"] if keys is None else ["keys", "queries"]
    assert tiles_of(emulator) == [(role, *tile) for role in roles]
    main = [launch for launch in emulator.launches() if "Tile" in launch.kernel]
    assert {(launch.threads, launch.cluster_blocks) for launch in main} == {(384, 2)}


# Channels, and the tile that is the first with room for them.
FIRST = [
    (64, 65, (128, 128)),
    (65, 1, (128, 128)),
    (1, 129, (128, 256)),
    (129, 1, (256, 256)),
]


@only_emulated
@pytest.mark.parametrize(("e", "ev", "tile"), FIRST)
def test_the_first_tile_that_is_wide_enough(hopper_backward, emulator, e, ev, tile) -> None:
    call = make_call("bfloat16", 1, 5, 9, e, ev)
    assert_near(call, hopper_backward(call), "bfloat16")
    assert tiles_of(emulator) == [("keys", *tile), ("queries", *tile)]


# Tokens, channels and values. A block owns 64 tokens, or 128 of at most 128 channels and values;
# 64 stream past in a step, or 48 where 128 of more than 64 channels are owned.
SHARED = [
    *((tokens, 16, 136) for tokens in (1, 63, 64, 65, 127, 128, 129, 200)),
    *((tokens, 16, 24) for tokens in (1, 63, 64, 65, 127, 128, 129, 255, 256, 257)),
    *((tokens, 16, 72) for tokens in (1, 47, 48, 49, 95, 96, 97)),
]


@pytest.mark.parametrize(("tokens", "channels", "values"), SHARED)
def test_shared_tokens_that_end_anywhere(hopper_backward, tokens, channels, values) -> None:
    """In a warp, in a step, between the blocks of a cluster and between clusters."""
    call = make_call("float16", 1, tokens, None, channels, values)
    assert_near(call, hopper_backward(call), "float16")


# Streamed keys: 64 a step; owned: 128 a cluster. Queries: 64 a step, 256 a cluster.
SIZES = [
    *((20, keys) for keys in (1, 63, 64, 65, 127, 128, 129, 200)),
    *((queries, 20) for queries in (1, 63, 64, 65, 127, 128, 129, 255, 257)),
]


@pytest.mark.parametrize(("queries", "keys"), SIZES)
def test_separate_tokens_that_end_anywhere(hopper_backward, queries: int, keys: int) -> None:
    call = make_call("bfloat16", 1, queries, keys, 16, 24)
    assert_near(call, hopper_backward(call), "bfloat16")


@pytest.mark.parametrize("keys", [47, 48, 49, 97])
def test_steps_of_48_keys(hopper_backward: Backward, keys: int) -> None:
    """The widest tile has room for no more of them."""
    call = make_call("float16", 1, 20, keys, 200, 40)
    assert_near(call, hopper_backward(call), "float16")


@each_precision
@each_sharing
@pytest.mark.parametrize("channels", [(1, 1), (7, 9), (40, 70), (130, 150), (3, 200)], ids=str)
def test_channels_that_end_anywhere(hopper_backward, channels, keys, precision: str) -> None:
    call = make_call(precision, 1, 33, keys, *channels)
    assert_near(call, hopper_backward(call), precision)


@pytest.mark.slow
@each_precision
@each_sharing
@each_tile
def test_every_tile_with_any_end(hopper_backward, tile, keys, precision: str) -> None:
    """Several tiles and images, of channels, tokens and keys that end one before and one behind."""
    channels, values = tile
    for less, tokens in ((1, 127), (7, 129), (9, 257)):
        call = make_call(precision, 2, tokens, keys and tokens + 64, channels - less, values - less)
        assert_near(call, hopper_backward(call), precision)


# --- what is wanted, and where it goes ---


@pytest.mark.parametrize("wanted", ["q", "k", "v", "qk", "qv", "kv", ""])
@each_sharing
def test_gradients_do_not_depend_on_what_else_is_wanted(hopper_backward, keys, wanted) -> None:
    call = make_call("float16", 1, 70, keys, 18, 40)
    every, some = hopper_backward(call), hopper_backward(call, wanted)
    letters = wanted if keys else wanted.replace("k", "")
    assert {name.removeprefix("grad_")[0] for name in some} == set(letters)
    assert_same_bits(some, {name: every[name] for name in some})


# Gradients that are wanted, and the kernels that make them.
PASSES = {"": [], "q": ["queries"], "k": ["keys"], "v": ["keys"], "kv": ["keys"]}
PASSES |= {"qv": ["keys", "queries"], "qkv": ["keys", "queries"]}


@only_emulated
@pytest.mark.parametrize("wanted", PASSES)
def test_each_pass_is_launched_where_it_is_wanted(hopper_backward, emulator, wanted) -> None:
    hopper_backward(make_call("float16", 1, 3, 5, 8, 8), wanted)
    assert [role for role, *_ in tiles_of(emulator)] == PASSES[wanted]
    emulator.configure()
    hopper_backward(make_call("float16", 1, 3, None, 8, 8), wanted)
    shared = ["both"] if "q" in wanted else ["keys"] if "v" in wanted else []
    assert [role for role, *_ in tiles_of(emulator)] == shared


@each_precision
@each_sharing
def test_strides_change_no_bit(hopper_backward: Backward, keys, precision: str) -> None:
    call = make_call(precision, 2, 19, keys and 22, 21, 40)
    dense = hopper_backward(call)
    assert_near(call, dense, precision)
    assert_same_bits(hopper_backward(call, layout="nchw"), dense)
    spread = hopper_backward(call, layout="gaps")
    assert_same_bits(spread, dense)
    for name, tensor in spread.items():
        room = tensor._base
        assert int(room.isnan().sum()) == room.numel() - tensor.numel(), name


@each_precision
def test_strides_of_what_was_saved_change_no_bit(hopper_backward, precision: str) -> None:
    call = make_call(precision, 2, 37, None, 21, 40)
    moved = {name: getattr(call, name).mT.contiguous().mT for name in ("out", "residual")}
    assert_same_bits(hopper_backward(call._replace(**moved)), hopper_backward(call))


@each_precision
def test_the_schedule_changes_no_bit(hopper_backward, subject, request, precision: str) -> None:
    """Two tiles of two steps, or one tile of two images, among few workers and many."""
    for images, tokens, keys in ((1, 129, None), (2, 20, 70)):
        call = make_call(precision, images, tokens, keys, 21, 40)
        expected = hopper_backward(call)
        for seed in (1, 2):
            if subject == "emulated":
                # Whole tiles: of so few steps none is cut.
                request.getfixturevalue("emulator").configure(seed=seed, multiprocessors=2 * seed)
            assert_same_bits(hopper_backward(call), expected)


@pytest.mark.slow
@each_tile
def test_the_schedule_changes_no_bit_of_any_tile(hopper_backward, emulator, tile) -> None:
    for keys in (None, 200):
        call = make_call("bfloat16", 1, 200, keys, *tile)
        emulator.configure(multiprocessors=2)
        expected = hopper_backward(call)
        for seed in range(1, 9):
            emulator.configure(seed=seed, multiprocessors=2)
            assert_same_bits(hopper_backward(call), expected)
