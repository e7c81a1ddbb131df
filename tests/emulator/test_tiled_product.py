# SPDX-License-Identifier: MIT
"""The tiled product of the hardware layer, in all its forms, against the product in float64."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tests.emulator.formats import sum_rounding

pytestmark = pytest.mark.native

STAGE_CHANNELS = 64
PRODUCT_CHANNELS = 16
CASES = [
    "64_channels_channels",
    "64_channels_tokens",
    "64_tokens_channels",
    "64_tokens_tokens",
    "80_channels_channels",
    "80_tokens_channels",
    "96_channels_channels",
    "96_tokens_channels",
    "256_channels_channels",
    "256_channels_tokens",
    "256_tokens_channels",
    "256_tokens_tokens",
    "64_channels_tokens_float16",
    "80_tokens_channels_float16",
    "80_channels_channels_registers",
    "64_tokens_tokens_registers",
    "256_channels_tokens_registers",
    "80_channels_channels_cluster",
    "64_tokens_tokens_cluster",
    "256_channels_tokens_cluster",
    "64_channels_channels_small",
    "96_tokens_channels_small",
]


@dataclass
class Operand:
    values: np.ndarray  # float64, tokens by channels
    lines: torch.Tensor  # as kernels see it; NaN past the end of each line

    @property
    def stride(self) -> int:
        return self.lines.stride(0)


def _operand(generator, tokens: int, channels: int, axis: str, dtype: torch.dtype) -> Operand:
    values = torch.randn(tokens, channels, generator=generator).to(dtype)
    lines = values if axis == "channels" else values.T
    width = -(-lines.shape[1] // 8) * 8 + 8  # rows start at multiples of 16 bytes
    room = torch.full((lines.shape[0], width), torch.nan, dtype=dtype)
    room[:, : lines.shape[1]] = lines
    return Operand(values.double().numpy(), room)


@dataclass
class Product:
    a: Operand
    b: Operand
    room: np.ndarray  # float32; wider and longer than the result
    rows: int
    columns: int

    @property
    def result(self) -> np.ndarray:
        return self.room[: self.rows, : self.columns]


def run_case(target, case: str, rows: int, columns: int, channels: int) -> Product:
    _, a_axis, b_axis, *more = case.split("_")
    dtype = torch.float16 if "float16" in more else torch.bfloat16
    generator = torch.Generator().manual_seed(rows + columns + channels)
    a = _operand(generator, rows, channels, a_axis, dtype)
    b = _operand(generator, columns, channels, b_axis, dtype)
    room = np.full((rows + 3, -(-columns // 4) * 4 + 4), np.nan, np.float32)
    inputs = [operand.lines.view(torch.int16).numpy() for operand in (a, b)]
    for lines in inputs:
        lines.flags.writeable = False
    sizes = [rows, columns, channels, a.stride, b.stride, room.shape[1]]
    target.run_probe(f"product_{case}", [*inputs, room], sizes)
    return Product(a, b, room, rows, columns)


def _check(target, product: Product) -> None:
    exact = product.a.values @ product.b.values.T
    error = np.abs(product.result.astype(np.float64) - exact)
    magnitudes = np.abs(product.a.values) @ np.abs(product.b.values).T
    # Instructions whose channels all lie past the end add nothing.
    instructions = -(-product.a.values.shape[1] // PRODUCT_CHANNELS)
    rounding = sum_rounding(magnitudes, PRODUCT_CHANNELS, instructions)
    assert (error <= rounding.of(target)).all()
    # What lies outside of the result was not written.
    assert np.isnan(product.room[product.rows :]).all()
    assert np.isnan(product.room[:, product.columns :]).all()


@pytest.mark.parametrize("case", CASES)
def test_equals_the_float64_product(target, case):
    """Ragged in all three sizes; more tiles than one of each, more stages than the ring has."""
    tile_columns = int(case.split("_")[0])
    _check(target, run_case(target, case, 131, tile_columns + 21, 3 * STAGE_CHANNELS + 27))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("channels", [1, STAGE_CHANNELS])
def test_less_than_a_tile(target, case, channels):
    _check(target, run_case(target, case, 1, 5, channels))
