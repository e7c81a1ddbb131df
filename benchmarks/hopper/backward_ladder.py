# SPDX-License-Identifier: MIT
"""The Hopper backward kernels step by step, for their first run on a device and for their errors.

python -m benchmarks.hopper.backward_ladder --out backward_ladder.jsonl

As the ladder of the forward kernel. A rung runs the kernel of lse and delta, which are checked in each, and
one pass behind it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.hopper.backward_inputs import KINDS, saved
from benchmarks.hopper.backward_library import VARIANTS, Results, Variant, run
from benchmarks.hopper.backward_reference import expect, judge
from benchmarks.hopper.ladder import Ladder, climb_on_device, sampled, stated
from benchmarks.hopper.library import Call, Floats, Partition, Target

TILE = 64  # rows of a block, and that stream past in a step

BOTH = Variant("kBoth", "kTokenMajor", 256, 256)
ALONE = replace(BOTH, cluster=1)
KEYS = replace(BOTH, kind="kKeys")
QUERIES = replace(BOTH, kind="kQueries", cols=48)
GROUPS = Variant("kBoth", "kGroups", 256, 256, cluster=1)
WIDE = Variant("kWide", "kTokenMajor", 128, 128, 48)

VALUES, TOKENS = ("grad_value",), ("grad_query",)


@dataclass(frozen=True)
class Rung:
    """One step of the ladder.

    Attributes:
        name: What it adds.
        variant: The kernel.
        call: The sizes.
        inputs: Of :data:`~benchmarks.hopper.backward_inputs.KINDS`.
        wanted: Gradients that are written and checked; all that the kernel makes, if not given.
        runs: How often, with equal bits each time.
    """

    name: str
    variant: Variant
    call: Call
    inputs: str = "features"
    wanted: tuple[str, ...] | None = None
    runs: int = 1


def _equal(images: int, queries: int, keys: int = 0) -> Call:
    return Call(images, queries, keys, equal_weights=True)


def _one_gradient_at_a_time(name: str, variant: Variant, tokens: int) -> tuple[Rung, ...]:
    """Return rungs of a consumer after the other, whose inputs name what was read."""
    call = Call(1, tokens, 0, variant.channels, variant.values)
    equal = replace(call, equal_weights=True)
    return (
        Rung(f"{name}dV, equal weights", variant, equal, wanted=VALUES),
        Rung(f"{name}dV, which tokens", variant, call, "tokens of values", VALUES),
        Rung(f"{name}dV, which channels", variant, call, "channels of values", VALUES),
        Rung(f"{name}dV", variant, call, wanted=VALUES),
        Rung(f"{name}dX, equal weights", variant, equal, wanted=TOKENS),
        Rung(f"{name}dX, which tokens", variant, equal, "tokens of keys", TOKENS),
        Rung(f"{name}dX, which channels", variant, equal, "channels of keys", TOKENS),
        Rung(f"{name}dX", variant, call, wanted=TOKENS),
    )


def _separate(name: str, variant: Variant, workers: int) -> tuple[Rung, ...]:
    """Return rungs of a pass whose keys are others than its queries; so many workers cut its tiles."""
    return (
        Rung(f"{name}: which tokens", variant, _equal(1, 256, 128), "tokens of keys"),
        Rung(f"{name}: which channels", variant, _equal(1, 256, 128), "channels of keys"),
        Rung(f"{name}: one tile", variant, Call(1, 128, 64)),
        Rung(f"{name}: several steps", variant, Call(1, 7 * TILE, 6 * TILE, whole_tiles=1), runs=3),
        Rung(f"{name}: last tiles in part", variant, Call(2, 333, 269, 200, 136)),
        Rung(f"{name}: tiles cut anywhere", variant, Call(2, 600, 555, workers=workers), runs=3),
    )


def _narrow(kind: str, channels: int, values: int) -> Rung:
    variant = Variant(kind, "kTokenMajor", channels, values)
    keys = 299 if variant.has_own_keys else 0
    return Rung(f"{kind}, {channels} x {values}", variant, Call(2, 300, keys, channels, values))


_SEVEN = Call(1, 7 * TILE, whole_tiles=1)
_ROOMS = ((64, 64), (128, 128), (128, 256))
_OF_WIDE = Call(1, 7 * WIDE.cols, 0, 128, 128)
_CELLS: Partition = (29, 2, 14, 1, 31, 3, 10, 1)
_STRIDED: Partition = (32, 4, 1, 4, 40, 2, 1, 2)
_ONE_GROUP: Partition = (8, 1, 8, 1, 8, 1, 8, 1)

RUNGS = (
    Rung("lse and delta", replace(BOTH, kind="kNumbers"), Call(2, 333)),
    # One block, one tile, one step: a consumer after the other, then both.
    *_one_gradient_at_a_time("", ALONE, TILE),
    Rung("one step", ALONE, Call(1, TILE)),
    Rung("grad_value alone, of separate roles", replace(KEYS, cluster=1), Call(1, TILE)),
    # The buffers again and again, and the scores from one consumer to the other.
    Rung("two steps", ALONE, Call(1, 2 * TILE)),
    Rung("three steps, which tokens", ALONE, _equal(1, 3 * TILE), "tokens of keys", TOKENS),
    Rung("seven steps", ALONE, _SEVEN, runs=3),
    # Ends of maps.
    Rung("last tiles in part", ALONE, Call(1, 2 * TILE + 13)),
    Rung("fewer channels", ALONE, Call(1, 2 * TILE + 13, channels=200, values=136)),
    Rung("slices of values", ALONE, Call(1, 2 * TILE, values=512)),
    # Jobs one after the other, and parts of them.
    Rung("tiles one after the other", ALONE, Call(2, 300, workers=1)),
    Rung("tiles cut in two", ALONE, Call(1, 10 * TILE, workers=20), runs=3),
    Rung("tiles cut anywhere", ALONE, Call(2, 437, workers=13), runs=3),
    # A cluster.
    *_one_gradient_at_a_time("cluster: ", BOTH, 2 * TILE),
    Rung("cluster: seven steps", BOTH, _SEVEN, runs=3),
    Rung("cluster: half of it without rows", BOTH, Call(1, 2 * TILE + 13)),
    Rung("cluster: tiles cut anywhere", BOTH, Call(2, 600, workers=3), runs=3),
    # Separate keys.
    *_separate("keys", KEYS, 3),
    *_separate("queries", QUERIES, 4),
    # Blocks of 128 rows.
    *_one_gradient_at_a_time("128 rows: ", replace(WIDE, cluster=1), WIDE.cols),
    Rung("128 rows: seven steps", WIDE, replace(_OF_WIDE, whole_tiles=1), runs=3),
    Rung("128 rows: last tiles in part", WIDE, Call(2, 301, 0, 72, 120)),
    Rung("128 rows: tiles cut anywhere", WIDE, Call(2, 600, 0, 128, 128, workers=3), runs=3),
    Rung(
        "128 rows: 64 x 64", replace(WIDE, channels=64, values=64, cols=64), Call(2, 300, 0, 64, 64)
    ),
    # Other tiles, and groups.
    *(_narrow(kind, *room) for kind in ("kBoth", "kKeys", "kQueries") for room in _ROOMS),
    Rung("groups: one, one step", GROUPS, Call(1, 64, partition=_ONE_GROUP)),
    Rung("groups: cells", GROUPS, Call(2, 29 * 31, partition=_CELLS)),
    Rung("groups: strided", GROUPS, Call(2, 32 * 40, partition=_STRIDED)),
    Rung(
        "groups: 128 x 128",
        replace(GROUPS, channels=128, values=128),
        Call(2, 29 * 31, 0, 128, 128, partition=_CELLS),
    ),
    *(
        Rung(
            f"groups: {kind}",
            replace(GROUPS, kind=kind, cols=cols),
            Call(2, 29 * 31, 29 * 31, partition=_CELLS),
        )
        for kind, cols in (("kKeys", 64), ("kQueries", 48))
    ),
    # Other choices.
    Rung("weights handed over", replace(BOTH, hands_weights=1), _SEVEN, runs=3),
    Rung("scores first", replace(BOTH, scores_first=1), _SEVEN, runs=3),
    Rung("product of keys first", replace(BOTH, key_first=1), _SEVEN, runs=3),
    # Whole maps.
    Rung("97 x 97", BOTH, Call(1, 97 * 97), runs=5),
    Rung("97 x 97, batch 2", BOTH, Call(2, 97 * 97), runs=5),
    Rung("97 x 97, 128 rows", WIDE, Call(1, 97 * 97, 0, 128, 128), runs=5),
    Rung("97 x 97, keys", KEYS, Call(1, 97 * 97, 97 * 97), runs=5),
    Rung("97 x 97, queries", QUERIES, Call(1, 97 * 97, 97 * 97), runs=5),
    Rung("97 x 97, weights handed over", replace(BOTH, hands_weights=1), Call(1, 97 * 97), runs=5),
)


def check(target: Target, rung: Rung) -> dict[str, Any]:
    """Run a rung, and say what is not right."""
    variant, call = rung.variant, rung.call
    inputs = saved(call, KINDS[rung.inputs](call))

    def once() -> Results:
        return run(target, variant, call, inputs, wanted=rung.wanted)

    def again() -> list[Floats]:
        return _written(once())

    results = once()
    wanted = tuple(results.gradients)
    verdict = judge(variant, results, expect(call, inputs, wanted, _rows))
    return {
        "errors": dict(verdict.errors),
        "plan": results.plan._asdict(),
        **stated(verdict.reason, rung.runs, _written(results), again),
    }


def _written(results: Results) -> list[Floats]:
    return [results.numbers, *results.gradients.values()]


def _rows(tokens: int) -> Sequence[int]:
    rows = sampled(tokens)
    return range(tokens) if rows is None else rows


LADDER = Ladder("backward_ladder", __doc__, VARIANTS, RUNGS, check)

if __name__ == "__main__":
    sys.exit(climb_on_device(LADDER, sys.argv[1:]))
