# SPDX-License-Identifier: MIT
"""Products of a warp with tiles in shared memory (csrc/common/mma_tile.cuh), against float64."""

import numpy as np
import pytest
import torch

from tests.emulator.cases_matrix import _nearest_tf32

pytestmark = pytest.mark.native

COLS, ROWS = 32, 16
INF, NAN = float("inf"), float("nan")
MATHS = ["bfloat16", "float16", "tfloat32", "split"]


def as_operands(values: np.ndarray, math: str) -> np.ndarray:
    """What the products see of fp32 numbers, in float64."""
    wide = np.ascontiguousarray(values, np.float32)
    if math == "tfloat32":
        return _nearest_tf32(wide).view(np.float32).astype(np.float64)
    if math == "split":
        return wide.astype(np.float64)
    return torch.from_numpy(wide).to(getattr(torch, math)).double().numpy()


def stored(values: np.ndarray, math: str, pitch: int) -> np.ndarray:
    """Rows in memory, `pitch` elements apart, NaN between them."""
    dtype = torch.float32 if math in ("tfloat32", "split") else getattr(torch, math)
    room = torch.full((values.shape[0], pitch), NAN, dtype=dtype)
    room[:, : values.shape[1]] = torch.from_numpy(values).to(dtype)
    return (room if dtype == torch.float32 else room.view(torch.int16)).numpy()


def run(target, math: str, rows: np.ndarray, cols: np.ndarray, first: int = 0):
    """Return the scores and the context of the 16 rows from ``first`` on."""
    channels = rows.shape[1]
    pitch = -(-channels // 8) * 8
    scores = np.full((ROWS, COLS), NAN, np.float32)
    context = np.full((ROWS, channels), NAN, np.float32)
    buffers = [stored(rows, math, pitch), stored(cols, math, pitch), scores, context]
    for buffer in buffers[:2]:
        buffer.flags.writeable = False
    arguments = [channels, pitch, len(rows), len(cols), first]
    target.run_probe(f"mma_tile_{math}", buffers, arguments)
    return scores, context


def padded(values: np.ndarray, first: int, rows: int) -> np.ndarray:
    """Rows from ``first`` on, zeros past the end."""
    room = np.zeros((rows, values.shape[1]))
    part = values[first : first + rows]
    room[: len(part)] = part
    return room


def assert_near(actual: np.ndarray, left: np.ndarray, right: np.ndarray, is_emulator: bool) -> None:
    """Every product is exact; sums of fp32 are rounded once a product, or cut on a device."""
    unit = 2.0**-24 if is_emulator else 2.0**-22
    terms = 6 * left.shape[1]
    bound = terms * unit * (np.abs(left) @ np.abs(right))
    assert (np.abs(actual - left @ right) <= bound).all()


@pytest.mark.parametrize("channels", [1, 8, 19, 40, 64])
@pytest.mark.parametrize("math", MATHS)
def test_products_are_exact_but_for_their_sums(target, math: str, channels: int) -> None:
    draw = np.random.default_rng(channels).standard_normal
    rows, cols = draw((37, channels)), draw((29, channels))
    scores, context = run(target, math, rows, cols, first=24)
    left, right = as_operands(rows, math), as_operands(cols, math)
    left, right = padded(left, 24, ROWS), padded(right, 0, COLS)
    assert_near(scores, left, right.T, target.is_emulator)
    assert (scores[13:] == 0).all()
    assert (scores[:, 29:] == 0).all()
    assert_near(context, as_operands(scores, math), right, target.is_emulator)


def test_split_parts_keep_all_24_bits(target) -> None:
    """One channel, so nothing is summed but the parts of one product."""
    rows = np.random.default_rng(0).uniform(1, 2, (ROWS, 1)).astype(np.float32)
    scores, _ = run(target, "split", rows, np.ones((COLS, 1), np.float32))
    assert (scores == rows).all()


@pytest.mark.parametrize("number", [INF, -INF, NAN], ids=str)
def test_split_keeps_infinities_apart_from_nan(target, number: float) -> None:
    rows, cols = np.full((ROWS, 4), 1.1), np.full((COLS, 4), 0.7)
    rows[3, 1], cols[5, 2] = number, number
    scores, context = run(target, "split", rows, cols)
    expected = rows @ cols.T
    assert (np.isnan(scores) == np.isnan(expected)).all()
    assert (np.isposinf(scores) == np.isposinf(expected)).all()
    assert (np.isneginf(scores) == np.isneginf(expected)).all()
    with np.errstate(invalid="ignore"):
        assert (np.isnan(context) == np.isnan(scores.astype(np.float64) @ cols)).all()


def test_split_reads_a_nan_whose_mark_is_in_its_last_bit(target) -> None:
    rows = np.ones((ROWS, 1), np.float32)
    rows.view(np.uint32)[2] = 0x7F800001
    scores, _ = run(target, "split", rows, np.ones((COLS, 1)))
    assert np.isnan(scores[2]).all()
    assert np.isfinite(np.delete(scores, 2, 0)).all()
