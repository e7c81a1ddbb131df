# SPDX-License-Identifier: MIT
"""Calls of the backward kernels in backward_variants.h, one pass each."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from benchmarks.hopper import library
from benchmarks.hopper.library import (
    HERE,
    Call,
    Floats,
    Pattern,
    Plan,
    Target,
    from_bfloat16,
    rows_of,
    to_bfloat16,
)

VARIANTS = dataclasses.replace(library.VARIANTS, path=HERE / "backward_variants.cu")

_TILE = 64  # tokens, of which the copy engine takes the numbers at once


@dataclass(frozen=True)
class Variant:
    """A row of the table in backward_variants.h."""

    kind: str
    source: str
    channels: int
    values: int
    cols: int = 64
    cluster: int = 2
    hands_weights: int = 0
    scores_first: int = 0
    key_first: int = 0

    @property
    def name(self) -> str:
        """Name of its probe."""
        return "-".join(map(str, dataclasses.astuple(self)))

    @property
    def has_own_keys(self) -> bool:
        """Whether its keys are others than its queries."""
        return self.kind in ("kKeys", "kQueries")

    @property
    def flops(self) -> int:
        """Operations of its products for a pair of a query and a key, where channels fill the tile."""
        scores, values = self.channels, self.values
        products = {
            "kNumbers": 0,
            "kBoth": 2 * scores + 3 * values,
            "kWide": 2 * scores + 3 * values,
            "kKeys": 2 * scores + 2 * values,
            "kQueries": 2 * scores + values,
        }
        return 2 * products[self.kind]

    def gradients(self, call: Call) -> tuple[str, ...]:
        """Return the gradients that it makes in a call."""
        of_keys = ("grad_key",) if call.keys else ()
        made = {
            "kNumbers": (),
            "kBoth": ("grad_query", "grad_value"),
            "kWide": ("grad_query", "grad_value"),
            "kKeys": (*of_keys, "grad_value"),
            "kQueries": ("grad_query",),
        }
        return made[self.kind]

    def pitch(self, queries: int) -> int:
        """Return how many numbers an image of so many queries has."""
        return queries if self.source == "kGroups" else -(-queries // _TILE) * _TILE


def table() -> list[Variant]:
    """Return all variants, the shipped ones first."""
    return [Variant(*row) for row in rows_of("backward_variants.h")]


@dataclass(frozen=True)
class Inputs:
    """What a backward pass is given, as ``(images, tokens, channels)``.

    Maps are exact in bfloat16, but for the context, which is what ``out`` and ``residual`` are the
    roundings of. ``lse`` is ``(images, queries)``.
    """

    query: Floats
    key: Floats
    value: Floats
    grad_out: Floats
    context: Floats
    lse: Floats

    @cached_property
    def maps(self) -> list[Pattern]:
        """Query, key, value, grad_out, out and residual, of bfloat16."""
        out = to_bfloat16(self.context)
        lost = to_bfloat16(self.context - from_bfloat16(out))
        given = [to_bfloat16(m) for m in (self.query, self.key, self.value, self.grad_out)]
        for pattern in (*given, out, lost):
            pattern.flags.writeable = False
        return [*given, out, lost]


@dataclass(frozen=True)
class Results:
    """What a pass wrote, and how long it took.

    Attributes:
        numbers: ``(images, pitch, 2)``: lse in powers of two, and delta.
        gradients: Those that were wanted, by name.
        plan: Of the pass.
        times_ms: Of the kernels of a call together.
    """

    numbers: Floats
    gradients: Mapping[str, Floats]
    plan: Plan
    times_ms: NDArray[np.float32]


def run(
    target: Target,
    variant: Variant,
    call: Call,
    inputs: Inputs,
    *,
    wanted: Sequence[str] | None = None,
    repeats: int = 0,
) -> Results:
    """Run a variant once, and ``repeats`` timed times more; results start as NaN.

    Args:
        target: What runs it.
        variant: The kernel.
        call: The sizes.
        inputs: Of the call.
        wanted: The gradients that are written; all that the variant makes, if not given.
        repeats: Timed calls.
    """
    shapes = {
        "grad_query": (call.images, call.queries, call.channels),
        "grad_key": (call.images, call.keys, call.channels),
        "grad_value": (call.images, call.key_tokens, call.values),
    }
    asked = variant.gradients(call) if wanted is None else wanted
    gradients = {
        name: np.full(shape if name in asked else 0, 0xFFFF, np.uint16)
        for name, shape in shapes.items()
    }
    query, key, *others = inputs.maps
    lse = inputs.lse.astype(np.float32)
    lse.flags.writeable = False
    numbers = np.full((call.images, variant.pitch(call.queries), 2), np.nan, np.float32)
    plan = np.zeros(len(Plan._fields), np.int64)
    times = np.zeros(repeats, np.float32)
    given = [query, key if call.keys else key[:, :0], *others, lse]
    target.run_probe(
        variant.name, [*given, numbers, *gradients.values(), plan, times], call.numbers
    )
    return Results(
        numbers.astype(np.float64),
        {name: from_bfloat16(gradients[name]) for name in asked},
        Plan(*map(int, plan)),
        times,
    )
