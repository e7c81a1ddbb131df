# SPDX-License-Identifier: MIT
"""The functions of csrc/common against numpy and torch."""

import math

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.native

STORAGE = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8": torch.float8_e4m3fn,
}
LARGEST = {"float16": 0x7BFF, "bfloat16": 0x7F7F, "float8": 0x7E}


def _from_bits(bits: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(bits.view(f"int{8 * bits.itemsize}")).view(dtype)


def _patterns(name: str, count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8 if name == "float8" else np.uint16)


@pytest.mark.parametrize("name", STORAGE)
def test_widen_every_bit_pattern(emulator, name):
    bits = _patterns(name, 1 << 8 * STORAGE[name].itemsize)
    expected = _from_bits(bits, STORAGE[name]).float().numpy()
    np.testing.assert_array_equal(getattr(emulator, f"widen_{name}")(bits), expected)


@pytest.mark.parametrize("name", STORAGE)
def test_narrow_rounds_as_torch(emulator, name):
    # Random bit patterns meet every exponent; ties between neighbours are where rounding can err.
    patterns = np.random.default_rng(0).integers(0, 1 << 32, 200_000, dtype=np.uint32)
    finite = _patterns(name, LARGEST[name] + 1)
    values = getattr(emulator, f"widen_{name}")(finite).astype(np.float64)
    ties = ((values[:-1] + values[1:]) / 2).astype(np.float32)
    above = np.nextafter(ties, np.float32(np.inf))
    edges = np.array([0.0, np.inf, 65504.0, 65519.99, 65520.0, 3.3961e38, 3.4e38], np.float32)
    wide = np.concatenate([patterns.view(np.float32), ties, above, edges])
    wide = np.concatenate([wide, -wide])
    # Float8 has no infinities: it ends at its largest number, where torch has NaN.
    kept = np.clip(wide, -448, 448) if name == "float8" else wide
    expected = torch.from_numpy(kept).to(STORAGE[name])
    got = _from_bits(getattr(emulator, f"narrow_{name}")(wide), STORAGE[name])
    nan = torch.from_numpy(np.isnan(wide))
    assert torch.equal(got.isnan(), nan)
    bits = torch.int8 if name == "float8" else torch.int16
    assert torch.equal(got.view(bits)[~nan], expected.view(bits)[~nan])


def test_float8_has_one_nan(emulator):
    assert set(emulator.narrow_float8(np.array([np.nan, -np.nan], np.float32))) == {0x7F}


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_masked_exponential_ignores_padding(emulator, name):
    function = getattr(emulator, f"masked_exponential_{name}")
    assert function(1.0, 3.0, True) == pytest.approx(math.exp(-2.0), rel=2e-7)
    for score in (math.nan, math.inf, -math.inf, 1e30):
        assert function(score, 0.0, False) == 0.0
    assert function(-math.inf, 0.0, True) == 0.0
    assert math.isnan(function(math.nan, 0.0, True))


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_masked_maximum_skips_nan_and_padding(emulator, name):
    function = getattr(emulator, f"masked_maximum_{name}")
    assert function(1.0, 2.0, True) == 2.0
    assert function(1.0, 0.5, True) == 1.0
    assert function(1.0, 2.0, False) == 1.0
    assert function(1.0, math.nan, True) == 1.0
    assert function(-math.inf, math.inf, True) == math.inf


def _streamed(emulator, name: str, scores: torch.Tensor, tile: int) -> tuple[float, float]:
    """(lse, total of weights 2) of one row, tile by tile, as the forward kernel does it."""
    softmax = getattr(emulator, f"OnlineSoftmax_{name}")()
    weighted = 0.0
    for start in range(0, len(scores), tile):
        part = scores[start : start + tile].tolist()
        peak = -math.inf
        for score in part:
            peak = getattr(emulator, f"masked_maximum_{name}")(peak, score, True)
        weighted *= softmax.raise_maximum(peak)
        for score in part:
            weight = getattr(emulator, f"masked_exponential_{name}")(
                score, softmax.reference(), True
            )
            softmax.total += weight
            weighted += 2.0 * weight
    lse = getattr(emulator, f"log_sum_exp_{name}")(softmax.maximum, softmax.total)
    return lse, weighted / softmax.total if softmax.total != 0 else math.nan


@pytest.mark.parametrize("name", ["float32", "float64"])
@pytest.mark.parametrize("tile", [1, 3, 8])
def test_online_softmax_matches_logsumexp(emulator, name, tile):
    dtype = getattr(torch, name)
    scores = 20 * torch.randn(17, generator=torch.Generator().manual_seed(0), dtype=dtype)
    lse, weighted = _streamed(emulator, name, scores, tile)
    # 17 rounded terms, and lse itself rounded.
    bound = 20 * torch.finfo(dtype).eps
    assert lse == pytest.approx(torch.logsumexp(scores.double(), 0).item(), rel=bound)
    assert weighted == pytest.approx(2.0, rel=bound)


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_online_softmax_recovers_from_infinite_tiles(emulator, name):
    scores = torch.tensor([-math.inf] * 4 + [1.0, 2.0], dtype=getattr(torch, name))
    lse, weighted = _streamed(emulator, name, scores, 2)
    assert lse == pytest.approx(torch.logsumexp(scores.double(), 0).item(), rel=1e-6)
    assert weighted == pytest.approx(2.0, rel=1e-6)
    assert _streamed(emulator, name, scores[:4], 2)[0] == -math.inf
    for poison in (math.nan, math.inf):
        scores[4] = poison
        assert math.isnan(_streamed(emulator, name, scores, 2)[0])


def test_offsets_have_64_bits(emulator):
    fields = (1 << 20, 1 << 34, 1 << 33, 5, 1 << 30, 512)
    expected = (1 << 20) + 3 * (1 << 34) + 1_000_000_000 * (1 << 33) + 511 * 5
    assert emulator.offset(fields, 3, 1_000_000_000, 511) == expected


@pytest.mark.parametrize("chunks", [1, 2, 7, 16])
@pytest.mark.parametrize("limit", [150, 230, 990])
def test_plan_covers_every_output_once(emulator, chunks, limit):
    images, rows, side, fixed, chunk_bytes = 2, 131, 64, 100, 50
    plan = emulator.plan_blocks(images, rows, side, chunks, fixed, chunk_bytes, limit)
    assert plan.shared_bytes <= limit
    assert plan.slices == math.ceil(chunks / ((limit - fixed) // chunk_bytes))
    seen = set()
    for block in range(plan.blocks):
        image, first_row, piece = emulator.locate_block(plan, block, side)
        first = piece * plan.chunks_per_block
        for chunk in range(first, min(first + plan.chunks_per_block, chunks)):
            assert (image, first_row, chunk) not in seen
            seen.add((image, first_row, chunk))
    tiles = range(0, rows, side)
    assert seen == {(n, row, c) for n in range(images) for row in tiles for c in range(chunks)}


def test_plan_without_room_is_empty(emulator):
    assert emulator.plan_blocks(1, 10, 64, 2, 100, 50, 149).blocks == 0


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_512_output_channels_fit_one_block(emulator, name):
    side, fixed, chunk = getattr(emulator, f"tile_sizes_{name}")()
    sm_80_limit = 163 * 1024
    assert fixed + 512 // side * chunk <= sm_80_limit
