# SPDX-License-Identifier: MIT
"""Products and copies of matrices by one warp, and arithmetic, by the figures of the ISA's tables."""

from functools import partial

import numpy as np

from tests.emulator.formats import (
    BFLOAT16,
    FLOAT8,
    FLOAT16,
    TFLOAT32,
    Format,
    encode,
    sum_rounding,
)
from tests.emulator.trials import Case, Rounding, Trial

LANES = np.arange(32)
GROUP, IN_GROUP = LANES // 4, LANES % 4


def a_fragment(patterns: np.ndarray) -> np.ndarray:
    """Registers of 16 rows: m16n8k16 of 16-bit elements, m16n8k8 of TF32, m64nNk32 of 8-bit ones."""
    registers = np.empty((32, 4), np.uint32)
    for register in range(4):
        row = GROUP + 8 * (register % 2)
        if patterns.itemsize == 1:
            column = 4 * IN_GROUP + 16 * (register // 2)
            low, high = (
                _pairs(patterns[row, first], patterns[row, first + 1], 8)
                for first in (column, column + 2)
            )
            registers[:, register] = _pairs(low, high)
        elif patterns.itemsize == 4:
            registers[:, register] = patterns[row, IN_GROUP + 4 * (register // 2)]
        else:
            column = 2 * IN_GROUP + 8 * (register // 2)
            registers[:, register] = _pairs(patterns[row, column], patterns[row, column + 1])
    return registers


def b_fragment(patterns: np.ndarray) -> np.ndarray:
    """Registers of 8 columns; rows are channels."""
    registers = np.empty((32, 2), np.uint32)
    for register in range(2):
        if patterns.itemsize == 4:
            registers[:, register] = patterns[IN_GROUP + 4 * register, GROUP]
        else:
            row = 2 * IN_GROUP + 8 * register
            registers[:, register] = _pairs(patterns[row, GROUP], patterns[row + 1, GROUP])
    return registers


def d_fragment(sums: np.ndarray) -> np.ndarray:
    """The accumulators of 16 rows: four for every 8 columns."""
    index = np.arange(sums.shape[1] // 2)
    row = GROUP[:, None] + 8 * (index // 2 % 2)
    column = 8 * (index // 4) + 2 * IN_GROUP[:, None] + index % 2
    return sums[row, column]


def _pairs(low: np.ndarray, high: np.ndarray, bits: int = 16) -> np.ndarray:
    return low.astype(np.uint32) | high.astype(np.uint32) << bits


INTEGERS, REALS, UNROUNDED = "integers", "reals", "unrounded"


def draw(generator, kind: str, *shape: int) -> np.ndarray:
    """Draw integers whose sums are exact in fp32, reals of a few bits, or reals of 24 bits."""
    if kind == INTEGERS:
        return generator.integers(-8, 9, shape).astype(np.float32)
    reals = generator.standard_normal(shape).astype(np.float32)
    return reals if kind == UNROUNDED else encode(reals, TFLOAT32)[1].astype(np.float32)


def mma(form: Format, kind: str, generator) -> Trial:
    a, a_values = encode(draw(generator, kind, 16, form.channels), form)
    b, b_values = encode(draw(generator, kind, form.channels, 8), form)
    d = draw(generator, kind, 16, 8)
    sums = d + a_values @ b_values
    buffers = [a_fragment(a), b_fragment(b), d_fragment(d)]
    if kind == INTEGERS:
        return Trial(buffers, {2: d_fragment(sums).astype(np.float32)})
    magnitudes = d_fragment(np.abs(d) + np.abs(a_values) @ np.abs(b_values))
    return Trial(
        buffers, {2: d_fragment(sums)}, rounding={2: sum_rounding(magnitudes, form.channels)}
    )


def _rows(generator, image: np.ndarray) -> np.ndarray:
    """Draw different places of 16 bytes for all lanes, used or not."""
    return (generator.permutation(image.nbytes // 16)[:32] * 16).astype(np.uint32)


def load_matrices(count: int, transposed: bool, generator) -> Trial:
    image = generator.integers(0, 2**16, 1024, np.uint16)
    offsets = _rows(generator, image)
    registers = np.empty((32, count), np.uint32)
    for matrix in range(count):
        starts = offsets[8 * matrix : 8 * matrix + 8] // 2
        elements = image[starts[:, None] + np.arange(8)]
        elements = elements.T if transposed else elements
        registers[:, matrix] = _pairs(
            elements[GROUP, 2 * IN_GROUP], elements[GROUP, 2 * IN_GROUP + 1]
        )
    return Trial([image, offsets, np.zeros_like(registers)], {2: registers})


def store_matrices(count: int, transposed: bool, generator) -> Trial:
    image = generator.integers(0, 2**16, 1024, np.uint16)
    offsets = _rows(generator, image)
    registers = generator.integers(0, 2**32, (32, count), np.uint32)
    after = image.copy()
    for matrix in range(count):
        elements = np.empty((8, 8), np.uint16)
        elements[GROUP, 2 * IN_GROUP] = registers[:, matrix] & 0xFFFF
        elements[GROUP, 2 * IN_GROUP + 1] = registers[:, matrix] >> 16
        elements = elements.T if transposed else elements
        starts = offsets[8 * matrix : 8 * matrix + 8] // 2
        after[starts[:, None] + np.arange(8)] = elements
    return Trial([image, offsets, registers], {0: after})


_SPECIAL = np.array(
    [
        *(0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3.4028235e38, -3.4028235e38),
        *(1.0, -1.0, 1.1754944e-38, 200.0, -200.0, 127.5, -125.5),
        # Ties and neighbours of ties: TF32, fp16, bf16.
        *(1.0004883, 1.0014648, -1.0004883, 1.0004882, 1.0004884, 65519.996, 65520.0, 2.9e-8),
        *(2.9802322e-8, 8.940697e-8, 1.00390625, 1.01171875, 1.0039064, 1.0117186),
        # Of e4m3, which ends at 448 and begins at 2^-9.
        *(448.0, 464.0, 500.0, -1e9, 440.0, 424.0, 1.0625, 1.1875, 1.0625001, 1.0624999),
        *(9.765625e-4, 9.765626e-4, 2.9296875e-3, -4.8828125e-3, 1.4648438e-2, 1.66e-2),
    ],
    np.float32,
)


def _arguments(generator) -> tuple[np.ndarray, np.ndarray]:
    x = generator.uniform(-125, 127, 512).astype(np.float32)
    x[::3] = generator.standard_normal(len(x[::3])) * 1e-3
    x[: len(_SPECIAL)] = _SPECIAL
    return x, generator.permutation(x)


def _blank(x: np.ndarray) -> np.ndarray:
    return np.full(x.shape, 0x55555555, np.uint32)


def exponential(generator) -> Trial:
    """ex2.approx.ftz: within 2 ulp; subnormal inputs and results are zeros."""
    x, y = _arguments(generator)
    smallest = 2.0**-126
    with np.errstate(over="ignore", invalid="ignore"):
        exact = np.exp2(np.where(np.abs(x) < smallest, 0, x).astype(np.float64))
    exact = np.where(exact < smallest, 0, np.where(exact >= 2.0**128, np.inf, exact))
    ulp = np.spacing(np.where(np.isfinite(exact), exact, 0).astype(np.float32)).astype(np.float64)
    rounding = Rounding(2 * ulp, (0.5 + 2.0**-20) * ulp)
    return Trial([x, y, _blank(x).view(np.float32)], {2: exact}, rounding={2: rounding})


def round_to_tf32(generator) -> Trial:
    x, y = _arguments(generator)
    canonical = {2: partial(_one_nan, np.uint32, 0x7F800000)}
    return Trial([x, y, _blank(x)], {2: _nearest_tf32(x)}, canonical=canonical)


def pack_pair(form: Format, infinity: int, generator) -> Trial:
    """The first number is in the low half."""
    x, y = _arguments(generator)
    halves = [encode(values, form)[0] for values in (x, y)]
    pairs = np.stack(halves, axis=1).view(np.uint32)[:, 0].copy()
    canonical = {2: partial(_one_nan, np.uint16, infinity)}
    return Trial([x, y, _blank(x)], {2: pairs}, canonical=canonical)


def pack_four(generator) -> Trial:
    """From the lowest byte on: two numbers from the start, and two from the end."""
    x, y = _arguments(generator)
    patterns = [encode(values, FLOAT8)[0] for values in (x, y, x[::-1], y[::-1])]
    words = np.stack(patterns, axis=1).view(np.uint32)[:, 0].copy()
    canonical = {2: partial(_one_nan, np.uint8, 0x7E)}
    return Trial([x, y, _blank(x)], {2: words}, canonical=canonical)


def _nearest_tf32(x: np.ndarray) -> np.ndarray:
    """11 significant bits, ties away from zero."""
    wide = np.abs(x[np.isfinite(x)].astype(np.float64))
    exponent = np.maximum(np.frexp(wide)[1] - 1, -126)
    unit = np.exp2(exponent - 10.0)
    nearest = np.floor(wide / unit + 0.5) * unit
    result = x.copy()
    with np.errstate(over="ignore"):
        result[np.isfinite(x)] = np.copysign(nearest, x[np.isfinite(x)])
    return result.view(np.uint32)


def _one_nan(dtype, infinity: int, patterns: np.ndarray) -> np.ndarray:
    """What bits a NaN has after a conversion is not for kernels to rely on."""
    values = patterns.copy().view(dtype)
    largest = np.iinfo(dtype).max
    values[(values & (largest // 2)) > infinity] = largest
    return values.view(patterns.dtype)


CASES = [
    *(
        Case(f"mma {form.name}", f"mma_{form.name}", partial(mma, form, kind), kind)
        for form in (BFLOAT16, FLOAT16, TFLOAT32)
        for kind in (INTEGERS, REALS)
    ),
    Case("mma tfloat32 unrounded", "mma_tfloat32", partial(mma, TFLOAT32, UNROUNDED), UNROUNDED),
    *(
        Case(
            f"{verb}_matrices",
            f"{verb}_matrices_{count}{'_transposed' if transposed else ''}",
            partial(make, count, transposed),
        )
        for verb, make in (("load", load_matrices), ("store", store_matrices))
        for count in (1, 2, 4)
        for transposed in (False, True)
    ),
    Case("exp2_approx", "exp2_approx", exponential),
    Case("round_to_tf32", "round_to_tf32", round_to_tf32),
    Case("pack_pair", "pack_pair_bfloat16", partial(pack_pair, BFLOAT16, 0x7F80)),
    Case("pack_pair", "pack_pair_float16", partial(pack_pair, FLOAT16, 0x7C00)),
    Case("pack_four", "pack_four", pack_four),
]
