# SPDX-License-Identifier: MIT
"""The Hopper forward kernel step by step, for its first run on a device and for its errors.

python -m benchmarks.hopper.ladder --out ladder.jsonl

Each rung adds one thing to those before it, and is run in a process that is ended where it hangs. A wrong
rung says which rows and channels are wrong, in the units of tiles: an error of a descriptor or of the swizzle
shows as whole lines of 64 channels, atoms of 8 rows, or products of 16.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from benchmarks.hopper.inputs import KINDS
from benchmarks.hopper.library import (
    VARIANTS,
    Call,
    Floats,
    Kernel,
    Results,
    Target,
    Variant,
    run,
)
from benchmarks.hopper.reference import expect, judge
from tests.emulator.device import (
    Device,
    ProbeError,
    Source,
    UnavailableError,
    UnsupportedError,
    build,
)

_SECONDS = 20.0  # of one rung; the first call makes the CUDA context
_MOST_SAMPLES = 192  # rows of each image that float64 checks, of large calls
_SMALL = 2048  # queries up to which it checks all

ONE = Variant("kTokenMajor", 256, 256, 80, cluster=1)
TWO = dataclasses.replace(ONE, cluster=2)
COLS = ONE.cols


class Step(Protocol):
    """One step of a ladder: what it adds, its kernel, and the sizes of the call."""

    @property
    def name(self) -> str: ...
    @property
    def variant(self) -> Kernel: ...
    @property
    def call(self) -> Call: ...


@dataclass(frozen=True)
class Rung:
    """One step of the ladder of the forward kernel.

    Attributes:
        name: What it adds.
        variant: The kernel.
        call: The sizes.
        inputs: Of :data:`~benchmarks.hopper.inputs.KINDS`.
        runs: How often, with equal bits each time.
    """

    name: str
    variant: Variant
    call: Call
    inputs: str = "features"
    runs: int = 1


def _grid(side: int, count: int) -> tuple[int, int, int, int]:
    """Return an axis of neighbours, in ``count`` groups."""
    return side, count, side // count, 1


_GROUPS = Variant("kGroups", 256, 256, 64, cluster=1)
_CHANNELS = Variant("kChannelMajor", 256, 256, 64)
_STEP = Call(1, 128, COLS)
_CLUSTER_STEP = Call(1, 256, COLS)
_CLUSTER_SEVEN = Call(1, 256, 7 * COLS, whole_tiles=1)

RUNGS = (
    # One block, one tile, one step.
    Rung("values alone", ONE, _STEP, "uniform"),
    Rung("which tokens", ONE, _STEP, "tokens"),
    Rung("which channels", ONE, _STEP, "channels"),
    Rung("one step", ONE, _STEP),
    # The ring of buffers.
    Rung("two steps", ONE, Call(1, 128, 2 * COLS)),
    Rung("three steps, which tokens", ONE, Call(1, 128, 3 * COLS), "tokens"),
    Rung("seven steps", ONE, Call(1, 128, 7 * COLS, whole_tiles=1), runs=3),
    # Ends of maps.
    Rung("last tiles in part", ONE, Call(1, 100, 2 * COLS + 13)),
    Rung("fewer channels", ONE, Call(1, 100, 2 * COLS + 13, channels=200, values=136)),
    Rung("slices of values", ONE, Call(1, 128, 2 * COLS, values=512)),
    # Jobs one after the other, and parts of them.
    Rung("tiles one after the other", ONE, Call(2, 300, 333, workers=1)),
    Rung("shared keys, own tile first", ONE, Call(1, 700)),
    Rung("tiles cut in two", ONE, Call(1, 128, 8 * COLS, workers=2), runs=3),
    Rung("tiles cut anywhere", ONE, Call(2, 300, 8 * COLS + 5, workers=4), runs=3),
    # A cluster.
    Rung("cluster: values alone", TWO, _CLUSTER_STEP, "uniform"),
    Rung("cluster: which tokens", TWO, _CLUSTER_STEP, "tokens"),
    Rung("cluster: which channels", TWO, _CLUSTER_STEP, "channels"),
    Rung("cluster: seven steps", TWO, _CLUSTER_SEVEN, runs=3),
    Rung("cluster: half of it without queries", TWO, Call(1, 100, 2 * COLS + 13)),
    Rung("cluster: tiles cut anywhere", TWO, Call(2, 600, 8 * COLS + 5, workers=3), runs=3),
    Rung("cluster: shared keys", TWO, Call(2, 700)),
    # Other tiles.
    Rung("64 x 64", Variant("kTokenMajor", 64, 64, 128), Call(2, 300, 401, 64, 64)),
    Rung("128 x 128", Variant("kTokenMajor", 128, 128, 128), Call(2, 300, 401, 128, 128)),
    Rung("128 x 256", Variant("kTokenMajor", 128, 256, 96), Call(2, 300, 401, 128, 256)),
    Rung("256 x 128", Variant("kTokenMajor", 256, 128, 96), Call(2, 300, 401, 256, 128)),
    # Other sources.
    Rung("channel-major: values alone", _CHANNELS, Call(1, 256, 64), "uniform"),
    Rung("channel-major: which tokens", _CHANNELS, Call(1, 256, 64), "tokens"),
    Rung("channel-major: which channels", _CHANNELS, Call(1, 256, 64), "channels"),
    Rung("channel-major", _CHANNELS, Call(2, 304, 408)),
    Rung(
        "channel-major, 128 x 128",
        Variant("kChannelMajor", 128, 128, 128),
        Call(2, 304, 408, 128, 128),
    ),
    Rung("groups: one, one step", _GROUPS, Call(1, 64, partition=(*_grid(8, 1), *_grid(8, 1)))),
    Rung("groups: cells", _GROUPS, Call(2, 29 * 31, partition=(*_grid(29, 2), *_grid(31, 3)))),
    Rung("groups: strided", _GROUPS, Call(2, 32 * 40, partition=(32, 4, 1, 4, 40, 2, 1, 2))),
    Rung(
        "groups: 64 x 64",
        Variant("kGroups", 64, 64, 128, cluster=1),
        Call(2, 29 * 31, 0, 64, 64, partition=(*_grid(29, 2), *_grid(31, 3))),
    ),
    # Other choices.
    Rung("references raised at once", dataclasses.replace(TWO, growth=0), _CLUSTER_SEVEN),
    Rung("turns of consumers", dataclasses.replace(TWO, turns=1), _CLUSTER_SEVEN, runs=3),
    # Whole maps.
    Rung("97 x 97", TWO, Call(1, 97 * 97), runs=5),
    Rung("97 x 97, batch 2", TWO, Call(2, 97 * 97), runs=5),
    Rung("97 x 97, turns", dataclasses.replace(TWO, turns=1), Call(2, 97 * 97), runs=5),
)


S = TypeVar("S", bound=Step)
Check = Callable[[Target, S], dict[str, Any]]


def check(target: Target, rung: Rung) -> dict[str, Any]:
    """Run a rung, and say what is not right; ``state`` is ``ok``, ``wrong`` or ``moves``."""
    call, inputs = rung.call, KINDS[rung.inputs](rung.call)
    results = run(target, rung.variant, call, inputs)
    verdict = judge(results, expect(call, inputs, sampled(call.queries)))

    def again() -> list[Floats]:
        return _written(run(target, rung.variant, call, inputs))

    return {
        "errors": {"out": verdict.error, "lse": verdict.lse_error},
        "plan": results.plan._asdict(),
        **stated(verdict.reason, rung.runs, _written(results), again),
    }


def _written(results: Results) -> list[Floats]:
    return [results.out, results.lse]


def sampled(tokens: int) -> Sequence[int] | None:
    """Return the rows that are checked of so many: of large maps the ends, and some between."""
    if tokens <= _SMALL:
        return None
    random = np.random.default_rng(2)
    inner = random.choice(tokens - 256, _MOST_SAMPLES - 128, replace=False) + 128
    return sorted({*range(64), *map(int, inner), *range(tokens - 64, tokens)})


def stated(
    reason: str, runs: int, first: Sequence[Floats], again: Callable[[], Sequence[Floats]]
) -> dict[str, Any]:
    """Return state and reason of a rung, which is run again where it is right."""
    if reason:
        return {"state": "wrong", "reason": reason}
    moved = _moving(runs, first, again)
    return {"state": "moves" if moved else "ok", "reason": moved}


def _moving(runs: int, first: Sequence[Floats], again: Callable[[], Sequence[Floats]]) -> str:
    """Say how results differ from run to run: a race, where they do."""
    for number in range(2, runs + 1):
        pairs = list(zip(first, again(), strict=True))
        if not all(np.array_equal(one, other) for one, other in pairs):
            differs = sum((one != other).sum() for one, other in pairs) / sum(a.size for a in first)
            return f"{differs:.2%} of the results of run {number} are others than those of run 1"
    return ""


def climb(target: Target, rungs: Sequence[S], check: Check[S]) -> Iterator[dict[str, Any]]:
    """Yield a row for each rung; ``state`` is ``ok``, ``wrong``, ``moves`` or ``failed``."""
    for rung in rungs:
        began = time.monotonic()
        try:
            found = check(target, rung)
        except ProbeError as error:
            found = {"state": "failed", "reason": str(error)}
        yield {
            "rung": rung.name,
            "variant": rung.variant.name,
            "call": dataclasses.asdict(rung.call),
            **found,
            "seconds": round(time.monotonic() - began, 2),
        }


class Ladder(NamedTuple, Generic[S]):
    """A program that climbs rungs."""

    name: str
    text: str
    source: Source
    rungs: Sequence[S]
    check: Check[S]


def climb_on_device(ladder: Ladder[S], argv: Sequence[str]) -> int:
    """Run a program; 1 if a rung is not right, 2 if there is nothing to run it with."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.hopper.{ladder.name}", description=ladder.text
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="of one rung")
    parser.add_argument(
        "--most", type=float, default=240.0, help="seconds of all; the rest is left"
    )
    parser.add_argument("--rungs", nargs="*", default=[], metavar="WORD", help="those named so")
    options = parser.parse_args(argv)
    try:
        device = Device(build(ladder.source)[0], seconds=options.seconds)
    except UnavailableError as error:
        print(f"{ladder.name}: {error}", file=sys.stderr)
        # Nothing is wrong with another GPU; it has none of these kernels.
        return 0 if isinstance(error, UnsupportedError) else 2
    words = options.rungs
    rungs = [r for r in ladder.rungs if not words or any(word in r.name for word in words)]
    rows = climb(device, rungs, ladder.check)
    bad = _report(ladder.name, rows, device.description, options)
    device.close()
    return 1 if bad else 0


def _report(
    name: str, rows: Iterator[dict[str, Any]], device: str, options: argparse.Namespace
) -> int:
    bad = 0
    ended = time.monotonic() + options.most
    for row in rows:
        bad += int(row["state"] != "ok")
        print(line(row), flush=True)
        if options.out is not None:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"device": device, **row}) + "\n")
        if time.monotonic() > ended:
            print(f"{name}: out of time; the rungs after this one were not tried")
            return bad + 1
    print(f"{name}: {bad} rungs are not right" if bad else f"{name}: every rung is right")
    return bad


def line(row: dict[str, Any]) -> str:
    """Return a row as text."""
    head = f"{row['state']:<7}{row['rung']:<38}{row['variant']}"
    if row["state"] == "ok":
        errors = ", ".join(f"{name} {error:.1e}" for name, error in row["errors"].items())
        return f"{head}  errors: {errors or 'none'}"
    return f"{head}\n       {row['reason']}"


LADDER = Ladder("ladder", __doc__, VARIANTS, RUNGS, check)

if __name__ == "__main__":
    sys.exit(climb_on_device(LADDER, sys.argv[1:]))
