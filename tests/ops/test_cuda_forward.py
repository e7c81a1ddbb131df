# SPDX-License-Identifier: MIT
"""The CUDA forward kernels at the level of the native op: their tiles, precisions and paths."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ocnet.ops._layout import aligned_rows
from tests.ops.test_cuda_kernels import INF, NAN, Call, make_call, place, sums_of

pytestmark = pytest.mark.native

KB = 1024
HALVES = [torch.bfloat16, torch.float16]
# A dtype, and whether its products may be rounded to TF32.
PRECISIONS = [
    (torch.bfloat16, False),
    (torch.float16, False),
    (torch.float32, True),
    (torch.float32, False),
]
# The gates of the forward pass: relative Frobenius error against float64.
GATES = {
    (torch.bfloat16, False): 3e-3,
    (torch.float16, False): 4e-4,
    (torch.float32, True): 6e-4,
    (torch.float32, False): 2e-6,
}
each_precision = pytest.mark.parametrize(("dtype", "tf32"), PRECISIONS, ids=str)
only_emulated = pytest.mark.parametrize("subject", ["emulated"], indirect=True)


class Result(NamedTuple):
    out: Tensor
    lse: Tensor
    residual: Tensor | None


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def forward(subject: str, backend: str, device: str) -> Callable[..., Result]:
    op = getattr(torch.ops, f"ocnet_{subject}").oc_attention_fwd

    def forward(call: Call, tf32: bool = False, layout: str = "channels_last") -> Result:
        query, key, value = (
            None if t is None else aligned_rows(place(t, layout, device)) for t in call[:3]
        )
        empty = torch.full(call.grad_out.shape, NAN, dtype=query.dtype)
        lse = torch.full(query.shape[:2], NAN, dtype=sums_of(query.dtype), device=device)
        out, residual = (place(empty, layout, device) for _ in range(2))
        if query.dtype not in HALVES:
            residual = None
        op(query, key, value, call.scale, tf32, out, lse, residual)
        return Result(*(None if t is None else t.cpu() for t in (out, lse, residual)))

    return forward


def formula(
    call: Call, operand: Callable[[Tensor], Tensor] = Tensor.double
) -> tuple[Tensor, Tensor]:
    """Return out and lse in float64, of operands as a kernel may see them."""
    query, value = operand(call.query), operand(call.value)
    key = query if call.key is None else operand(call.key)
    scores = call.scale * (query @ key.mT)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


def error(actual: Tensor, exact: Tensor) -> float:
    return float((actual.double() - exact).norm() / exact.norm())


def assert_within_gate(result: Result, call: Call, tf32: bool) -> None:
    out, lse = formula(call)
    gate = GATES[call.query.dtype, tf32]
    assert error(result.out, out) <= gate
    if result.residual is not None:
        assert error(result.out.double() + result.residual.double(), out) <= gate
    # Rounded operands move scores by up to two roundings of each product's magnitude.
    rounding = 2 ** -(11 if tf32 else 24)
    query = call.query.double().abs()
    key = query if call.key is None else call.key.double().abs()
    sizes = call.scale * (query @ key.mT).amax(-1)
    bound = (2 * rounding + 2.0**-24 * query.shape[-1]) * sizes + 2.0**-22 * (8 + lse.abs())
    assert bool(((result.lse.double() - lse).abs() <= bound).all())


def tile_of(emulator) -> list[tuple[int, int, int]]:
    """Keys of a tile, width and warps of each forward launch."""
    tiles = []
    for launch in emulator.launches():
        if "fwd" in launch.kernel:
            cols, width = launch.kernel.rstrip(">").split(", ")[-2:]
            tiles.append((int(cols), int(width), launch.threads // 32))
    return tiles


@each_precision
@pytest.mark.parametrize("keys", [None, 37], ids=["shared", "separate"])
def test_accuracy_gates(forward, dtype: torch.dtype, tf32: bool, keys: int | None) -> None:
    call = make_call(2, 50, keys, 40, 70, dtype)
    assert_within_gate(forward(call, tf32), call, tf32)


# Channels, limit of shared memory, and the tile: keys, width, warps for 33 rows of queries.
NARROW_TILES = [
    ((24, 20), 227, (64, 128, 3)),
    ((24, 130), 227, (64, 256, 3)),
    ((512, 512), 163, (64, 256, 3)),
    ((512, 300), 99, (32, 256, 3)),
]
TF32_TILES = [
    ((24, 20), 227, (32, 128, 3)),
    ((24, 130), 227, (32, 256, 3)),
    ((256, 256), 99, (16, 256, 3)),
    ((512, 300), 163, (16, 256, 3)),
    ((512, 300), 99, (16, 256, 1)),
]
SPLIT_TILES = [
    ((24, 20), 227, (32, 128, 3)),
    ((24, 130), 227, (16, 256, 3)),
    ((512, 300), 99, (16, 256, 1)),
]
TILES = [
    (precision, *row)
    for precision, rows in zip(
        PRECISIONS, (NARROW_TILES, NARROW_TILES, TF32_TILES, SPLIT_TILES), strict=True
    )
    for row in rows
]


@only_emulated
@pytest.mark.parametrize(("precision", "channels", "limit", "tile"), TILES, ids=str)
def test_every_tile(forward, emulator, precision, channels, limit: int, tile) -> None:
    emulator.configure(shared_limit=limit * KB)
    dtype, tf32 = precision
    call = make_call(1, 33, 19, *channels, dtype)
    result = forward(call, tf32)
    assert tile_of(emulator) == [tile]
    assert emulator.launches()[0].shared_bytes <= limit * KB
    assert_within_gate(result, call, tf32)


@only_emulated
def test_as_many_warps_as_fit(forward, emulator) -> None:
    call = make_call(1, 130, None, 256, 20, torch.bfloat16)
    for limit, tile in ((227, (64, 128, 8)), (99, (64, 128, 7))):
        emulator.configure(shared_limit=limit * KB)
        assert_within_gate(forward(call), call, False)
        assert tile_of(emulator) == [tile]


@each_precision
def test_weights_add_up_to_one(forward, dtype: torch.dtype, tf32: bool) -> None:
    """Whatever rounding does to them: sums are divided by the total of the rounded weights."""
    call = make_call(1, 20, 150, 16, 12, dtype)
    call.value.fill_(1.25)
    result = forward(call, tf32)
    exact = result.out.double()
    if result.residual is not None:
        exact += result.residual.double()
    assert float((exact - 1.25).abs().max()) <= 150 * 2.0**-24


def as_tf32(values: Tensor, to_nearest: bool) -> Tensor:
    """Return fp32 numbers with the 13 bits that TF32 lacks rounded off, or cut off."""
    bits = values.contiguous().view(torch.int32)
    half = 0x1000 if to_nearest else 0
    return ((bits + half) & ~0x1FFF).view(torch.float32).double()


def test_tf32_rounds_to_nearest(forward) -> None:
    """The hardware cuts off what it is not given; all numbers are positive, so that would add up."""
    call = make_call(1, 40, 50, 64, 24)
    for tensor in (call.query, call.key, call.value):
        tensor.abs_().add_(1)
    exact, _ = formula(call)
    result = forward(call, tf32=True)
    cut = error(formula(call, lambda t: as_tf32(t, to_nearest=False))[0], exact)
    nearest = error(formula(call, lambda t: as_tf32(t, to_nearest=True))[0], exact)
    # Besides the operands the weights are rounded, to the nearest too.
    assert error(result.out, exact) <= 4 * nearest
    assert error(result.out, exact) <= cut / 4
    assert torch.equal(forward(call).out, forward(call, tf32=False).out)
    assert error(forward(call).out, exact) <= nearest / 50


@only_emulated
@pytest.mark.parametrize("layout", ["channels_last", "nchw"])
@each_precision
def test_split_keys(forward, emulator, dtype: torch.dtype, tf32: bool, layout: str) -> None:
    call = make_call(2, 20, 700, 8, 37, dtype)
    runs = {}
    for multiprocessors in (1, 132):
        emulator.configure(multiprocessors=multiprocessors)
        runs[multiprocessors] = forward(call, tf32, layout)
        kernels = [launch.kernel for launch in emulator.launches()]
        assert any("combine" in kernel for kernel in kernels) == (multiprocessors > 1)
        assert_within_gate(runs[multiprocessors], call, tf32)
    emulator.configure(multiprocessors=132, seed=5)
    again = forward(call, tf32, layout)
    for tensor, same in zip(runs[132], again, strict=True):
        assert tensor is None or torch.equal(tensor, same)


@only_emulated
def test_slices_of_split_keys(forward, emulator) -> None:
    """Two slices of output channels, the last with a ragged group."""
    call = make_call(1, 20, 400, 6, 261)
    emulator.configure(multiprocessors=24)
    result = forward(call)
    attention, combine = emulator.launches()
    assert attention.blocks == 18  # 9 parts of the keys
    assert combine.blocks == -(-20 // 8)
    assert_within_gate(result, call, False)


@only_emulated
def test_diagonal_of_split_keys(forward, emulator) -> None:
    """With as many keys as queries, each part but one lacks the tile that would come first."""
    call = make_call(1, 330, None, 6, 8)
    emulator.configure(multiprocessors=12)
    result = forward(call)
    assert [launch.blocks for launch in emulator.launches()] == [3 * 4, -(-330 // 8)]
    assert_within_gate(result, call, False)


@only_emulated
@each_precision
def test_few_keys_walk(forward, emulator, dtype: torch.dtype, tf32: bool) -> None:
    """Blocks that keep 40 keys and walk over several tiles of queries, the last of them ragged."""
    emulator.configure(multiprocessors=2)
    call = make_call(2, 300, 40, 8, 20, dtype)
    result = forward(call, tf32)
    (launch,) = emulator.launches()
    assert launch.blocks == 2  # 3 tiles of queries of each image
    assert_within_gate(result, call, tf32)


@each_precision
@pytest.mark.parametrize("step", [0.5, 7.0, 30.0])
def test_growing_scores(forward, dtype: torch.dtype, tf32: bool, step: float) -> None:
    """Scores that grow along the keys: slowly, within the lazy threshold a tile, and beyond it."""
    call = make_call(1, 20, 150, 16, 12, dtype)
    call.query[..., 0], call.key[..., 0] = 4, torch.arange(150) // 16 * step
    call.query[0, 7] *= -1  # one row whose scores fall
    out, _ = formula(call)
    # Large scores have large roundings, in any fp32 arithmetic.
    eager, _ = formula(call, Tensor.float)
    assert error(forward(call, tf32).out, out) <= max(GATES[dtype, tf32], 2 * error(eager, out))


@each_precision
@pytest.mark.parametrize("scale", [0.0, -0.25])
def test_any_scale(forward, monkeypatch, dtype: torch.dtype, tf32: bool, scale: float) -> None:
    monkeypatch.setattr(Call, "scale", scale)
    call = make_call(1, 20, 70, 16, 12, dtype)
    result = forward(call, tf32)
    out, _ = formula(call)
    assert error(result.out, out) <= GATES[dtype, tf32]


@each_precision
@pytest.mark.parametrize("multiprocessors", [1, 132])
def test_dead_tiles_leave_no_trace(
    forward, backend, request, subject, dtype: torch.dtype, tf32: bool, multiprocessors: int
) -> None:
    """Keys at -inf, in more than the first parts; then a row without any other key is NaN."""
    if subject == "emulated":
        request.getfixturevalue("emulator").configure(multiprocessors=multiprocessors)
    call = make_call(1, 6, 400, 4, 3, dtype)
    call.query.abs_()
    call.key[:, :320] = -INF
    result = forward(call, tf32)
    alive = Call(call.query, call.key[:, 320:], call.value[:, 320:], call.grad_out)
    out, _ = formula(alive)
    assert error(result.out, out) <= GATES[dtype, tf32]
    assert bool(result.lse.isfinite().all())
    call.key[:] = -INF
    dead = forward(call, tf32)
    assert bool(dead.out.isnan().all())
    assert bool((dead.lse == -INF).all())


@pytest.mark.parametrize("layout", ["nchw", "gaps"])
@each_precision
def test_rows_that_are_not_aligned_are_refused(
    backend, subject, device: str, dtype: torch.dtype, tf32: bool, layout: str
) -> None:
    op = getattr(torch.ops, f"ocnet_{subject}").oc_attention_fwd
    call = make_call(1, 9, 7, 8, 8, dtype)
    good = [t.to(device) for t in call[:3]]
    lse = torch.empty(1, 9, device=device)
    for position, name in enumerate(("query", "key", "value")):
        bad = list(good)
        bad[position] = place(call[position], layout, device)
        with pytest.raises(RuntimeError, match=rf"^oc_attention_fwd: {name} must .*aligned"):
            op(*bad, call.scale, tf32, torch.empty_like(good[0]), lse, None)
    shifted = torch.zeros(1, 9, 9, dtype=dtype, device=device)[..., 1:]
    with pytest.raises(RuntimeError, match=r"^oc_attention_fwd: query must .*aligned"):
        op(shifted, *good[1:], call.scale, tf32, torch.empty_like(good[0]), lse, None)


def test_more_channels_than_the_tiles_know_are_refused(backend, subject, device: str) -> None:
    op = getattr(torch.ops, f"ocnet_{subject}").oc_attention_fwd
    wide, lse = torch.zeros(1, 3, 520, device=device), torch.empty(1, 3, device=device)
    with pytest.raises(RuntimeError, match="query must have at most 512 channels, got 520"):
        op(wide, None, wide, 1.0, False, torch.empty_like(wide), lse, None)


@only_emulated
def test_a_device_with_too_little_shared_memory_is_refused(forward, emulator) -> None:
    emulator.configure(shared_limit=48 * KB)
    with pytest.raises(RuntimeError, match=r"query must have channels that fit the 49152 bytes"):
        forward(make_call(1, 9, None, 512, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_residual_of_what_is_not_rounded_is_refused(backend, subject, device: str, dtype) -> None:
    op = getattr(torch.ops, f"ocnet_{subject}").oc_attention_fwd
    query, lse = (torch.zeros(s, dtype=dtype, device=device) for s in ((1, 3, 8), (1, 3)))
    with pytest.raises(RuntimeError, match="residual must be absent"):
        op(query, None, query, 1.0, False, torch.empty_like(query), lse, torch.empty_like(query))
