# SPDX-License-Identifier: MIT
"""The forward kernels on Hopper's own instructions at the level of the native op, without groups."""

import re
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ocnet.ops._hopper import operands
from ocnet.testing import assert_same_nonfinite
from tests.ops.test_cuda_forward import (
    GATES,
    HALVES,
    Result,
    assert_within_gate,
    error,
    formula,
    only_emulated,
)
from tests.ops.test_cuda_kernels import INF, NAN, Call, make_call, place
from tests.ops.test_hopper_plans import WHOLE_MAPS

pytestmark = pytest.mark.native

TOKENS, CHANNELS = 0, 1  # what lies side by side in the sources of tiles, by number
LAYOUTS = {TOKENS: "channels_last", CHANNELS: "nchw"}
each_dtype = pytest.mark.parametrize("dtype", HALVES, ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values())
each_sharing = pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


def place_padded(values: Tensor, layout: str, device: str) -> Tensor:
    """Copy (N, tokens, channels) values so that the copy engine can read them; gaps are NaN."""
    n, tokens, channels = values.shape
    padded = [n, -(-tokens // 8) * 8, -(-channels // 8) * 8]
    room = place(values.new_full(padded, NAN), layout, device)
    return room[:, :tokens, :channels].copy_(values)


@pytest.fixture
def forward(hopper_ops, device: str) -> Callable[..., Result]:
    """Run a call whose operands lie in ``layout``, and whose results are to lie in ``results``."""
    op = hopper_ops.oc_attention_hopper_fwd

    def forward(
        call: Call,
        layout: str = "channels_last",
        results: str = "channels_last",
        keep_residual: bool = True,
    ) -> Result:
        query, key, value = (
            None if t is None else place_padded(t, layout, device) for t in call[:3]
        )
        empty = torch.full(call.grad_out.shape, NAN, dtype=query.dtype)
        lse = torch.full(query.shape[:2], NAN, device=device)
        out, residual = (place(empty, results, device) for _ in range(2))
        given = residual if keep_residual else None
        op(query, key, value, call.scale, out, lse, given)
        assert keep_residual or bool(residual.isnan().all())
        return Result(out.cpu(), lse.cpu(), residual.cpu() if keep_residual else None)

    return forward


def tiles_of(emulator) -> list[tuple[int, int, int, int]]:
    """Source, channels, values and keys of a step of each forward launch."""
    found = []
    for launch in emulator.launches():
        numbers = re.search(
            r"HopperTile<ocnet::\w+, (\d+), (\d+), (\d+), \(.*?\)(\d)>", launch.kernel
        )
        if numbers is not None:
            channels, values, cols, source = map(int, numbers.groups())
            found.append((source, channels, values, cols))
    return found


def assert_same_results(left: Result, right: Result) -> None:
    for tensor, same in zip(left, right, strict=True):
        assert (tensor is None and same is None) or torch.equal(tensor, same)


@only_emulated
@each_dtype
@pytest.mark.parametrize("row", WHOLE_MAPS, ids=str)
def test_every_row(forward, emulator, row, dtype: torch.dtype) -> None:
    """With channels that fill it, and with fewer; keys that end in each part of a tile."""
    source, channels, values, cols, cluster, shared = row
    sizes = [(channels, values, cols - 1), (channels - 11, values - 3, cols + 1)]
    sizes += [(channels, values, cols), (channels - 3, values - 8, 3 * cols + 5)]
    for e, ev, keys in sizes:
        emulator.configure()
        call = make_call(1, 130, keys, e, ev, dtype)
        assert_within_gate(forward(call, LAYOUTS[source]), call, False)
        assert tiles_of(emulator) == [row[:4]]
        (launch,) = emulator.launches()
        assert (launch.threads, launch.cluster_blocks) == (384, cluster)
        assert launch.shared_bytes == shared


# Channels, and the row that is the first with room for them.
FIRST = [
    ("channels_last", 64, 64, (64, 64, 128)),
    ("channels_last", 65, 1, (128, 128, 128)),
    ("channels_last", 1, 65, (128, 128, 128)),
    ("channels_last", 128, 129, (128, 256, 96)),
    ("channels_last", 1, 512, (128, 256, 96)),
    ("channels_last", 129, 128, (256, 128, 96)),
    ("channels_last", 129, 129, (256, 256, 80)),
    ("nchw", 2, 128, (128, 128, 128)),
    ("nchw", 128, 129, (256, 256, 64)),
    ("nchw", 129, 2, (256, 256, 64)),
]


@only_emulated
@pytest.mark.parametrize(("layout", "e", "ev", "tile"), FIRST)
def test_the_first_row_that_is_wide_enough(forward, emulator, layout, e, ev, tile) -> None:
    call = make_call(1, 3, 9, e, ev, torch.float16)
    assert_within_gate(forward(call, layout), call, False)
    assert tiles_of(emulator) == [((layout == "nchw"), *tile)]


@each_sharing
@each_layout
def test_queries_that_end_anywhere(forward, layout: str, shared: bool) -> None:
    """In a warp, between warpgroups, blocks and clusters; the keys with them where they are shared."""
    for queries in (1, 64, 65, 128, 129, 256, 257):
        call = make_call(1, queries, None if shared else 20, 16, 24, torch.float16)
        assert_within_gate(forward(call, layout), call, False)


@each_layout
def test_keys_that_end_anywhere(forward, layout: str) -> None:
    for keys in (1, 63, 64, 65, 127, 128, 129, 257):
        call = make_call(1, 20, keys, 16, 24, torch.float16)
        assert_within_gate(forward(call, layout), call, False)


@pytest.mark.parametrize("channels", [(1, 1), (7, 9), (40, 70), (130, 150)], ids=str)
@pytest.mark.parametrize("placed", ["channels_last", "nchw", "gaps"])
def test_any_channels_as_the_back_end_hands_them_over(
    hopper_ops, device: str, placed: str, channels: tuple[int, int]
) -> None:
    """Rows that are not aligned are copied, and their padding is NaN."""
    call = make_call(2, 35, 70, *channels, torch.bfloat16)
    given = operands(*(place(t, placed, device) for t in call[:3]))
    out = torch.full(call.grad_out.shape, NAN, dtype=torch.bfloat16, device=device)
    lse = torch.full(call.query.shape[:2], NAN, device=device)
    hopper_ops.oc_attention_hopper_fwd(*given, call.scale, out, lse, None)
    assert_within_gate(Result(out.cpu(), lse.cpu(), None), call, False)


@each_layout
@pytest.mark.parametrize("e", [60, 130])
@pytest.mark.parametrize("ev", [257, 300, 512])
def test_slices_of_values(forward, layout: str, e: int, ev: int) -> None:
    call = make_call(2, 70, 150, e, ev, torch.float16)
    assert_within_gate(forward(call, layout), call, False)


@each_sharing
@each_layout
def test_strides_of_results_change_no_bit(forward, layout: str, shared: bool) -> None:
    call = make_call(2, 150, None if shared else 200, 40, 66, torch.bfloat16)
    dense = forward(call, layout)
    assert_within_gate(dense, call, False)
    for results in ("nchw", "gaps"):
        assert_same_results(forward(call, layout, results), dense)
    without = forward(call, layout, keep_residual=False)
    assert_same_results(without, dense._replace(residual=None))


@each_layout
def test_the_schedule_changes_no_bit(forward, subject, request, layout: str) -> None:
    """Two tiles of queries of each of two images, among workers that have several or none."""
    call = make_call(2, 300, 270, 16, 24, torch.bfloat16)
    expected = forward(call, layout)
    for seed in (1, 2, 3):
        if subject == "emulated":
            # Whole tiles: of so few steps none is cut.
            request.getfixturevalue("emulator").configure(seed=seed, multiprocessors=2 * seed)
        assert_same_results(forward(call, layout), expected)


@each_dtype
@each_layout
def test_weights_add_up_to_one(forward, layout: str, dtype: torch.dtype) -> None:
    """Whatever rounding does to them: sums are divided by the total of the rounded weights."""
    call = make_call(1, 20, 150, 16, 12, dtype)
    call.value.fill_(1.25)
    result = forward(call, layout)
    exact = result.out.double() + result.residual.double()
    assert float((exact - 1.25).abs().max()) <= 150 * 2.0**-24


# --- numbers at their ends ---


@pytest.fixture(params=["whole", "cut"])
def cut(request: pytest.FixtureRequest, subject: str) -> bool:
    """Whether calls with one tile of queries and at least seven of keys are cut in four, if emulated."""
    if subject == "emulated":
        processors = 8 if request.param == "cut" else 2
        request.getfixturevalue("emulator").configure(multiprocessors=processors)
    return request.param == "cut"


@each_dtype
@each_layout
@pytest.mark.parametrize("scale", [0.0, -0.25, 1e6])
def test_any_scale(forward, monkeypatch, layout: str, dtype: torch.dtype, scale: float) -> None:
    monkeypatch.setattr(Call, "scale", scale)
    call = make_call(1, 20, 300, 16, 12, dtype)
    result = forward(call, layout)
    assert error(result.out, formula(call)[0]) <= GATES[dtype, False]


@each_dtype
@pytest.mark.parametrize("step", [0.5, 7.0, 30.0])
def test_growing_scores(forward, cut: bool, dtype: torch.dtype, step: float) -> None:
    """Scores that grow along the keys: slowly, within the lazy threshold a tile, and beyond it."""
    call = make_call(1, 20, 900, 16, 12, dtype)
    call.query[..., 0], call.key[..., 0] = 4, torch.arange(900) // 64 * step
    call.query[0, 7] *= -1  # one row whose scores fall
    out, _ = formula(call)
    # Large scores have large roundings, in any fp32 arithmetic.
    eager, _ = formula(call, Tensor.float)
    assert error(forward(call).out, out) <= max(GATES[dtype, False], 2 * error(eager, out))


@each_dtype
def test_dead_tiles_leave_no_trace(forward, cut: bool, dtype: torch.dtype) -> None:
    """Keys at -inf, in more than the first parts; then a row without any other key is NaN."""
    call = make_call(1, 6, 900, 4, 3, dtype)
    call.query.abs_()
    call.key[:, :700] = -INF
    result = forward(call)
    alive = Call(call.query, call.key[:, 700:], call.value[:, 700:], call.grad_out)
    assert error(result.out, formula(alive)[0]) <= GATES[dtype, False]
    assert bool(result.lse.isfinite().all())
    call.key[:] = -INF
    dead = forward(call)
    assert bool(dead.out.isnan().all())
    assert bool((dead.lse == -INF).all())


@pytest.mark.parametrize("number", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("where", ["query", "key", "value", "both"])
def test_nonfinite_input(forward, cut: bool, where: str, number: float) -> None:
    """In the last token, of a ragged tile."""
    sizes = (1, 140, None) if where == "both" else (1, 9, 801 if cut else 130)
    call = make_call(*sizes, 3, 5, torch.bfloat16)
    getattr(call, "query" if where == "both" else where)[0, -1, 1] = number
    label = f"out with {number} in {where}"
    assert_same_nonfinite(label, forward(call).out, formula(call)[0])


# --- stream-K ---

# Images, queries, keys (None: shared), multiprocessors, and how many tiles are then cut into how many
# parts; a step has 128 keys, a tile 256 queries, a worker two multiprocessors.
CUTS = [
    (1, 100, 1500, 4, {2: 1}),
    (1, 100, 1500, 6, {3: 1}),
    (1, 30, 700, 132, {6: 1}),  # a worker for every step
    (3, 60, 1250, 4, {1: 2, 2: 1}),  # fewer workers than tiles
    (4, 20, 1500, 14, {2: 2, 3: 2}),
    (1, 700, None, 36, {6: 3}),  # the tile's own keys come first
]


@only_emulated
@each_layout
@pytest.mark.parametrize("case", CUTS, ids=str)
def test_cut_tiles(forward, emulator, case, layout: str) -> None:
    images, queries, keys, multiprocessors, parts = case
    maps = emulator.whole_maps(images, queries, keys or queries)
    plan, _ = emulator.deal_hopper(maps, False, 256, 128, 1, multiprocessors // 2)
    tiles = Counter(job[0] for worker in range(plan.workers) for job in plan.jobs(worker))
    assert Counter(tiles.values()) == parts
    call = make_call(images, queries, keys, 16, 24, torch.float16)
    runs = []
    for seed, results in ((0, "channels_last"), (7, "nchw")):
        emulator.configure(multiprocessors=multiprocessors, seed=seed)
        runs.append(forward(call, layout, results))
        attention, combine = emulator.launches()
        assert [tile[-1] for tile in tiles_of(emulator)] == [128]
        assert attention.blocks == 2 * plan.workers
        assert combine.blocks == (plan.workers - 1) * 256 // 8
    assert_within_gate(runs[0], call, False)
    assert_same_results(*runs)


@only_emulated
@each_layout
def test_slices_of_cut_tiles(forward, emulator, layout: str) -> None:
    """Two slices of the channels, the last with a ragged group; only one has the logarithms."""
    emulator.configure(multiprocessors=12)
    call = make_call(1, 30, 800, 16, 261, torch.bfloat16)
    dense = forward(call, layout)
    assert [launch.blocks for launch in emulator.launches()] == [12, 5 * 32]
    assert_within_gate(dense, call, False)
    without = forward(call, layout, "nchw", keep_residual=False)
    assert_same_results(without, dense._replace(residual=None))


@only_emulated
@pytest.mark.parametrize("multiprocessors", [1, 2, 3])
def test_one_worker(forward, emulator, multiprocessors: int) -> None:
    """A device that has no second pair of multiprocessors."""
    emulator.configure(multiprocessors=multiprocessors)
    call = make_call(2, 300, 300, 16, 24, torch.bfloat16)
    assert_within_gate(forward(call), call, False)
    (launch,) = emulator.launches()
    assert launch.blocks == 2
