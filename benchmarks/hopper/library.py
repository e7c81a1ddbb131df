# SPDX-License-Identifier: MIT
"""Calls of the forward kernels in variants.h: a library built by nvcc, and a process that runs it."""

import re
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tests.emulator.device import Source

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VARIANTS = Source(HERE / "variants.cu", (ROOT / "csrc", ROOT / "tests" / "emulator", HERE))

Floats = NDArray[np.float64]
Pattern = NDArray[np.uint16]  # of bfloat16
Partition = tuple[int, int, int, int, int, int, int, int]
WHOLE: Partition = (0, 0, 0, 0, 0, 0, 0, 0)
EQUALISING = 2.0**-40


class Target(Protocol):
    """A GPU, or the emulator in its place."""

    def run_probe(self, name: str, buffers: Any, arguments: Any = ()) -> None:
        """Run a kernel on buffers, of which the writeable ones are written."""


class Kernel(Protocol):
    """A row of a table of kernels."""

    @property
    def name(self) -> str:
        """Name of its probe."""

    @property
    def channels(self) -> int:
        """Room for channels of queries and keys."""

    @property
    def values(self) -> int:
        """Room for channels of values."""

    @property
    def has_own_keys(self) -> bool:
        """Whether its keys are others than its queries."""


@dataclass(frozen=True)
class Variant:
    """A row of the table in variants.h."""

    source: str
    channels: int
    values: int
    cols: int
    cluster: int = 2
    growth: int = 8
    turns: int = 0

    @property
    def name(self) -> str:
        """Name of its probe."""
        return "-".join(map(str, astuple(self)))

    @property
    def has_own_keys(self) -> bool:
        """Whether its keys are others than its queries: they may be."""
        return False

    @property
    def rows(self) -> int:
        """Queries of a tile: those of a cluster."""
        return 128 * self.cluster


def rows_of(header: str) -> list[list[Any]]:
    """Return the rows of the table in a header: words and numbers."""
    text = (HERE / header).read_text(encoding="utf-8")
    rows = re.findall(r"^  VARIANT\(([\w, ]+)\)", text, re.MULTILINE)
    return [[int(each) if each.isdigit() else each for each in row.split(", ")] for row in rows]


def table() -> list[Variant]:
    """Return all variants, the shipped ones first."""
    return [Variant(*row) for row in rows_of("variants.h")]


@dataclass(frozen=True)
class Call:
    """Sizes of a call, and how its work is dealt.

    Attributes:
        images: Batch size.
        queries: Tokens of the queries.
        keys: Tokens of keys and values; 0 where the keys are the queries.
        channels: Of queries and keys.
        values: Of values.
        workers: Clusters at most; 0 for what the device has.
        own_keys_first: 0 or 1; -1 for what the plan says.
        whole_tiles: 1 where tiles are never cut.
        partition: Size, count, step and stride of groups of rows, then of columns.
        equal_weights: Whether the scale is so small that all weights are equal, whatever the scores.
    """

    images: int
    queries: int
    keys: int = 0
    channels: int = 256
    values: int = 256
    workers: int = 0
    own_keys_first: int = -1
    whole_tiles: int = 0
    partition: Partition = WHOLE
    equal_weights: bool = False

    @property
    def scale(self) -> float:
        """Of the scores."""
        return EQUALISING if self.equal_weights else float(self.channels**-0.5)

    @property
    def key_tokens(self) -> int:
        """Tokens of keys and values."""
        return self.keys or self.queries

    @property
    def numbers(self) -> list[int]:
        """The numbers of variant_calls.h."""
        scale = int(np.float64(self.scale).view(np.int64))
        sizes = [self.images, self.queries, self.keys, self.channels, self.values]
        return [*sizes, scale, self.workers, self.own_keys_first, self.whole_tiles, *self.partition]


class Plan(NamedTuple):
    """What the host side decided, and what the device says of the kernel."""

    tiles: int
    workers: int
    steps: int  # of a tile, where tiles are cut; else 0
    key_tiles: int
    shared_bytes: int
    clusters_at_once: int


@dataclass(frozen=True)
class Inputs:
    """Maps as ``(images, tokens, channels)``, exact in bfloat16."""

    query: Floats
    key: Floats
    value: Floats


@dataclass(frozen=True)
class Results:
    """What a kernel wrote, and how long it took."""

    out: Floats
    residual: Floats | None
    lse: Floats
    plan: Plan
    times_ms: NDArray[np.float32]


def to_bfloat16(numbers: Floats) -> Pattern:
    """Round to nearest even."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(patterns: Pattern) -> Floats:
    """Return the values of patterns."""
    return (patterns.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def run(
    target: Target,
    variant: Variant,
    call: Call,
    inputs: Inputs,
    *,
    residual: bool = True,
    repeats: int = 0,
) -> Results:
    """Run a variant once, and ``repeats`` timed times more; results start as NaN."""
    by_tokens = variant.source == "kChannelMajor"
    axes = (0, 2, 1) if by_tokens else (0, 1, 2)

    def given(maps: Floats) -> Pattern:
        patterns = to_bfloat16(np.ascontiguousarray(maps.transpose(axes)))
        patterns.flags.writeable = False
        return patterns

    shape = tuple((call.images, call.queries, call.values)[axis] for axis in axes)
    out = np.full(shape, 0xFFFF, np.uint16)
    lost = np.full(shape if residual else 0, 0xFFFF, np.uint16)
    lse = np.full((call.images, call.queries), np.nan, np.float32)
    plan = np.zeros(len(Plan._fields), np.int64)
    times = np.zeros(repeats, np.float32)
    key = inputs.key if call.keys else inputs.key[:, :0]
    maps = [given(inputs.query), given(key), given(inputs.value)]
    target.run_probe(variant.name, [*maps, out, lost, lse, plan, times], call.numbers)
    return Results(
        from_bfloat16(out).transpose(axes),
        from_bfloat16(lost).transpose(axes) if residual else None,
        lse.astype(np.float64),
        Plan(*map(int, plan)),
        times,
    )
