# SPDX-License-Identifier: MIT
"""Products of a warpgroup: fragments, and operands in shared memory under the 128-byte swizzle.

Images of shared memory are laid out by the canonical layouts of the ISA, element by element; where no
element lies there is NaN, so that reading the wrong place shows.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from tests.emulator.cases_matrix import INTEGERS, REALS, UNROUNDED, a_fragment, d_fragment, draw
from tests.emulator.formats import BFLOAT16, FLOAT8, FLOAT16, TFLOAT32, Format, encode, sum_rounding
from tests.emulator.trials import Case, Trial

ROWS = 64
STEPS = 2
CHANNELS, TOKENS, REGISTERS = "channels", "tokens", "registers"


@dataclass(frozen=True)
class Tile:
    """An operand in shared memory: where it starts, and the strides of its descriptor, in bytes.

    128 bytes hold ``line`` elements of the contiguous axis. K-major, 8 rows are an atom and `stride`
    leads to the next 8. MN-major, an atom is ``line`` rows by 8 channels: `leading` leads to the next
    rows, `stride` to the next channels.
    """

    contiguous: str
    itemsize: int
    start: int
    leading: int
    stride: int

    def place(self, rows: np.ndarray, channels: np.ndarray) -> np.ndarray:
        line = 128 // self.itemsize
        if self.contiguous == CHANNELS:
            byte = rows // 8 * self.stride + rows % 8 * 128 + channels * self.itemsize
        else:
            byte = rows // line * self.leading + rows % line * self.itemsize
            byte = byte + channels // 8 * self.stride + channels % 8 * 128
        byte = byte + self.start
        return byte ^ (byte // 128 % 8 * 16)

    def descriptor(self, first_channel: int) -> list[int]:
        """Start, leading and stride of the product that begins at a channel."""
        if self.contiguous == CHANNELS:
            return [self.start + first_channel * self.itemsize, self.leading, self.stride]
        return [self.start + first_channel // 8 * self.stride, self.leading, self.stride]


def _tile(generator, contiguous: str, form: Format, rows: int, channels: int, start: int):
    """Draw the strides of a tile, with room between atoms; return it and where it ends."""
    itemsize = form.bits // 8
    room = 1024 * int(generator.integers(1, 3))
    if contiguous == CHANNELS:  # all channels lie in one line; the leading stride is not used
        tile = Tile(contiguous, itemsize, start, 16, room)
        return tile, start + -(-rows // 8) * room
    if generator.random() < 0.5:
        leading, stride = room * (channels // 8), room
    else:
        leading, stride = room, room * -(-rows * itemsize // 128)
    tile = Tile(contiguous, itemsize, start, leading, stride)
    return tile, start + -(-rows * itemsize // 128) * (channels // 8) * room


@dataclass
class Operand:
    patterns: np.ndarray  # rows by channels
    values: np.ndarray

    @classmethod
    def draw(cls, generator, kind: str, form: Format, rows: int) -> "Operand":
        return cls(*encode(draw(generator, kind, rows, STEPS * form.channels), form))

    def write(self, image: np.ndarray, tile: Tile) -> None:
        places = tile.place(*np.indices(self.patterns.shape))
        image.view(self.patterns.dtype)[places // self.patterns.itemsize] = self.patterns


def warpgroup_fragment(fragment, rows: np.ndarray) -> np.ndarray:
    """Each of four warps holds 16 rows."""
    return np.concatenate([fragment(part) for part in np.split(rows, 4)])


def _sums(d: np.ndarray, products: list[np.ndarray], accumulate: list[bool]) -> np.ndarray:
    for product, add in zip(products, accumulate, strict=True):
        d = d + product if add else product
    return d


def wgmma(form: Format, columns: int, a_from: str, b_from: str, kind: str, generator) -> Trial:
    """Two steps of 32 bytes of channels, wherever they lie in a line or in a row of atoms."""
    channels = STEPS * form.channels
    a = Operand.draw(generator, kind, form, ROWS)
    b = Operand.draw(generator, kind, form, columns)
    end = 0
    tiles = {}
    for name, operand, source in (("a", a, a_from), ("b", b, b_from)):
        if source != REGISTERS:
            rows = len(operand.patterns)
            tiles[name], end = _tile(generator, source, form, rows, channels, end)
    image = np.full(end, 0xFF, np.uint8)
    if "a" in tiles:
        a.write(image, tiles["a"])
    b.write(image, tiles["b"])

    # The steps in any order; what is not accumulated is not read.
    order = generator.permutation(STEPS).tolist()
    accumulate = [bool(add) for add in generator.integers(0, 2, STEPS)]
    parts = [slice(step * form.channels, (step + 1) * form.channels) for step in order]
    d = draw(generator, kind, ROWS, columns)
    sums = _sums(d, [a.values[:, p] @ b.values[:, p].T for p in parts], accumulate)
    magnitudes = _sums(
        np.abs(d), [np.abs(a.values[:, p]) @ np.abs(b.values[:, p]).T for p in parts], accumulate
    )
    if not accumulate[0]:
        d = np.full_like(d, np.nan)

    arguments = [int(add) for add in accumulate]
    for part in parts:
        for name in ("a", "b"):
            arguments += tiles[name].descriptor(part.start) if name in tiles else [0, 0, 0]
    registers = np.stack(
        [warpgroup_fragment(a_fragment, a.patterns[:, part].copy()) for part in parts]
    )
    expected = warpgroup_fragment(d_fragment, sums)
    buffers = [image, registers, warpgroup_fragment(d_fragment, d)]
    if kind == INTEGERS:
        return Trial(buffers, {2: expected.astype(np.float32)}, arguments)
    magnitudes = warpgroup_fragment(d_fragment, magnitudes)
    rounding = sum_rounding(magnitudes, form.channels, STEPS, form.sum_bits)
    return Trial(buffers, {2: expected}, arguments, {2: rounding})


def groups(generator) -> Trial:
    """A group for each step, with sums of its own."""
    form, columns = BFLOAT16, 8
    a = Operand.draw(generator, INTEGERS, form, ROWS)
    b = Operand.draw(generator, INTEGERS, form, columns)
    tiles = [Tile(CHANNELS, 2, 0, 16, 1024), Tile(CHANNELS, 2, 8192, 16, 1024)]
    image = np.full(9216, 0xFF, np.uint8)
    a.write(image, tiles[0])
    b.write(image, tiles[1])
    d = draw(generator, INTEGERS, STEPS, ROWS, columns)
    sums = d.astype(np.float64)
    arguments = [1, 1]
    for step in range(STEPS):
        part = slice(16 * step, 16 * step + 16)
        sums[step] += a.values[:, part] @ b.values[:, part].T
        arguments += [number for tile in tiles for number in tile.descriptor(part.start)]
    fragments = [
        np.stack([warpgroup_fragment(d_fragment, one) for one in array]) for array in (d, sums)
    ]
    buffers = [image, np.zeros(4, np.uint32), fragments[0]]
    return Trial(buffers, {2: fragments[1].astype(np.float32)}, arguments)


def registers(generator) -> Trial:
    values = draw(generator, INTEGERS, 192, 256)
    neighbours = values[:, np.arange(256) ^ 1]
    out = (values + neighbours)[::-1].copy()
    lowered = values[0, :128] + 1
    buffers = [values, np.zeros_like(out), np.zeros_like(lowered)]
    return Trial(buffers, {1: out, 2: lowered})


_PAIRS = [(a, b) for a in (CHANNELS, TOKENS, REGISTERS) for b in (CHANNELS, TOKENS)]
_CHANNEL_PAIRS = [(CHANNELS, CHANNELS), (REGISTERS, CHANNELS)]
_MAIN = (8, 24, 64, 80, 96, 128, 256)
_OTHER = tuple(n for n in range(8, 257, 8) if n not in _MAIN)


def _cases(form: Format, columns: tuple[int, ...], pairs, kind: str) -> list[Case]:
    found = []
    for a, b in pairs:
        for n in columns:
            operands = UNROUNDED if kind == UNROUNDED else f"{a} x {b}"
            primitive = f"wgmma {form.name} {operands}"
            make = partial(wgmma, form, n, a, b, kind)
            found.append(Case(primitive, f"wgmma_{form.name}_{n}_{a}_{b}", make, kind))
    return found


CASES = [
    *_cases(BFLOAT16, _MAIN, _PAIRS, INTEGERS),
    *_cases(BFLOAT16, (80, 256), _PAIRS, REALS),
    *_cases(BFLOAT16, _OTHER, _CHANNEL_PAIRS, INTEGERS),
    *_cases(FLOAT16, (8, 80, 256), _PAIRS, INTEGERS),
    *_cases(FLOAT16, (80,), _PAIRS, REALS),
    *_cases(TFLOAT32, _MAIN, _CHANNEL_PAIRS, INTEGERS),
    *_cases(TFLOAT32, (80,), _CHANNEL_PAIRS, REALS),
    *_cases(TFLOAT32, (80,), _CHANNEL_PAIRS, UNROUNDED),
    *_cases(FLOAT8, _MAIN, _CHANNEL_PAIRS, INTEGERS),
    *_cases(FLOAT8, (80, 256), _CHANNEL_PAIRS, REALS),
    Case("wgmma groups", "wgmma_groups", groups),
    Case("setmaxnreg", "registers", registers),
]
