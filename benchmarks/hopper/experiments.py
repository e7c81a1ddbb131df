# SPDX-License-Identifier: MIT
"""Times of the Hopper forward kernel with other choices than the shipped ones, one JSON row each.

python -m benchmarks.hopper.experiments --out variants.jsonl

Each is checked before it is timed. docs/kernels.md says what is asked of each, in which order, and what
follows from the answer.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.hopper.inputs import features
from benchmarks.hopper.library import VARIANTS, Call, Inputs, Kernel, Plan, Target, Variant, run
from benchmarks.hopper.reference import Expected, expect, judge
from benchmarks.rates import Rates, measure_rates
from benchmarks.run import describe_machine
from ocnet.ops.oc_attention.flops import forward_flops
from tests.emulator.device import Device, ProbeError, Source, UnavailableError, build

SHIPPED = Variant("kTokenMajor", 256, 256, 80)
SHIPPED_ASP = Variant("kTokenMajor", 128, 256, 96)
TOKENS = 97 * 97
BATCHES = (2, 4, 8)
_SAMPLES = 64  # rows of each image that float64 checks


V = TypeVar("V", bound=Kernel)


@dataclass(frozen=True)
class Experiment(Generic[V]):
    """A variant and how its work is dealt; what it is compared with is the shipped one.

    Attributes:
        question: What is asked by it.
        variant: The kernel.
        own_keys_first: As in a call.
        whole_tiles: As in a call.
        as_many_as_run: Whether there are no more workers than clusters that run at once, which an
            earlier experiment with this variant has found out.
    """

    question: str
    variant: V
    own_keys_first: int = -1
    whole_tiles: int = 0
    as_many_as_run: bool = False

    def call(self, images: int, tokens: int) -> Call:
        """Return the call of a batch."""
        return Call(
            images,
            tokens,
            tokens if self.variant.has_own_keys else 0,
            channels=self.variant.channels,
            values=self.variant.values,
            own_keys_first=self.own_keys_first,
            whole_tiles=self.whole_tiles,
        )


class Attempt(NamedTuple):
    """What came of a call."""

    error: float  # relative
    reason: str  # why it is wrong; empty where it is right
    plan: Plan
    times_ms: NDArray[np.float32]


class Pass(NamedTuple, Generic[V]):
    """A program that measures variants of the kernels of a pass.

    Attributes:
        name: Of the module.
        text: What it does.
        source: The kernels.
        experiments: In their order.
        prepare: Makes of a call what it is given and what is expected of it.
        attempt: Runs and checks a call, on what was prepared, with so many timed repeats.
        flops: Operations of a call.
    """

    name: str
    text: str
    source: Source
    experiments: Sequence[Experiment[V]]
    prepare: Callable[[Call], Any]
    attempt: Callable[[Target, V, Call, Any, int], Attempt]
    flops: Callable[[V, Call], int]


def other(question: str, base: V, **changes: int) -> Experiment[V]:
    """Return an experiment with other choices than those of a kernel."""
    return Experiment(question, dataclasses.replace(base, **changes))  # type: ignore[type-var]


# The first is measured again at the end: what lies between the two is noise.
EXPERIMENTS = (
    Experiment("shipped", SHIPPED),
    other("blocks alone", SHIPPED, cluster=1),
    other("references raised at once", SHIPPED, growth=0),
    other("turns", SHIPPED, turns=1),
    other("64 keys", SHIPPED, cols=64),
    Experiment("whole tiles", SHIPPED, whole_tiles=1),
    Experiment("first keys first", SHIPPED, own_keys_first=0),
    Experiment("as many clusters as run at once", SHIPPED, as_many_as_run=True),
    other("blocks alone, turns", SHIPPED, cluster=1, turns=1),
    other("64 keys, turns", SHIPPED, cols=64, turns=1),
    other("64 keys, blocks alone", SHIPPED, cols=64, cluster=1),
    Experiment("shipped, again", SHIPPED),
    Experiment("128/256: shipped", SHIPPED_ASP),
    other("128/256: blocks alone", SHIPPED_ASP, cluster=1),
    other("128/256: turns", SHIPPED_ASP, turns=1),
    other("128/256: 80 keys", SHIPPED_ASP, cols=80),
)


def prepare(call: Call) -> tuple[Inputs, Expected]:
    """Return inputs of a call, and some of its results."""
    inputs = features(call)
    return inputs, expect(call, inputs, sampled(call.queries))


def sampled(tokens: int) -> list[int]:
    """Return the rows that are checked of so many."""
    return [int(row) for row in np.linspace(0, tokens - 1, min(tokens, _SAMPLES))]


def attempt(
    target: Target, variant: Variant, call: Call, prepared: tuple[Inputs, Expected], repeats: int
) -> Attempt:
    """Check and time one call."""
    inputs, expected = prepared
    results = run(target, variant, call, inputs, residual=False, repeats=repeats)
    verdict = judge(results, expected)
    return Attempt(verdict.error, verdict.reason, results.plan, results.times_ms)


def flops(variant: Variant, call: Call) -> int:
    """Return the operations of a call."""
    return forward_flops(call.images, call.queries, call.key_tokens, call.channels, call.values)


FORWARD = Pass("experiments", __doc__, VARIANTS, EXPERIMENTS, prepare, attempt, flops)


def measure(
    target: Target,
    of: Pass[V],
    batches: Sequence[int],
    *,
    questions: Sequence[str] = (),
    tokens: int = TOKENS,
    repeats: int = 50,
) -> Iterator[dict[str, Any]]:
    """Yield a row for each experiment and batch, batch by batch; of all questions if none is named."""
    at_once: dict[V, int] = {}
    for images in batches:
        prepared: dict[tuple[int, ...], Any] = {}
        for experiment in of.experiments:
            if questions and experiment.question not in questions:
                continue
            call = experiment.call(images, tokens)
            if experiment.as_many_as_run:
                call = dataclasses.replace(call, workers=at_once.get(experiment.variant, 0))
            key = call.channels, call.values, call.keys
            if key not in prepared:
                prepared[key] = of.prepare(call)
            row = _row(target, of, experiment, call, prepared[key], repeats)
            if "plan" in row:
                at_once[experiment.variant] = row["plan"]["clusters_at_once"]
            yield row


def _row(
    target: Target,
    of: Pass[V],
    experiment: Experiment[V],
    call: Call,
    prepared: Any,
    repeats: int,
) -> dict[str, Any]:
    """Check and time one call; ``status`` is ``ok``, ``wrong`` or ``failed``."""
    variant = experiment.variant
    asked = {"question": experiment.question, "variant": variant.name}
    row: dict[str, Any] = {**asked, "call": dataclasses.asdict(call)}
    try:
        found = of.attempt(target, variant, call, prepared, repeats)
    except ProbeError as error:
        return {**row, "status": "failed", "reason": str(error)}
    row |= {"error": found.error, "plan": found.plan._asdict(), "reason": found.reason}
    if found.reason:
        return {**row, "status": "wrong"}
    times = _times(of.flops(variant, call), [float(each) for each in found.times_ms])
    return {**row, "status": "ok", **times}


def _times(flops: int, times_ms: Sequence[float]) -> dict[str, Any]:
    if not times_ms:
        return {}
    p20, p50, p80 = (float(each) for each in np.percentile(times_ms, (20, 50, 80)))
    times = {"p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "repeats": len(times_ms)}
    return {**times, "tflop_s": flops / p50 / 1e9}


def measure_on_device(of: Pass[V], argv: Sequence[str]) -> int:
    """Run a program; 1 if a variant fails or is wrong, 2 if none can run."""
    options = _parser(of).parse_args(argv)
    try:
        device = Device(build(of.source)[0])
    except UnavailableError as error:
        print(f"{of.name}: {error}", file=sys.stderr)
        return 2
    rates = measure_rates("cuda", "bfloat16") if torch.cuda.is_available() else None
    machine = describe_machine("cuda")
    bad, ended = 0, time.monotonic() + options.most
    chosen = {"questions": options.questions, "repeats": options.repeats}
    for row in measure(device, of, options.batches, **chosen):
        bad += int(row["status"] != "ok")
        print(line(row, rates), flush=True)
        if options.out is not None:
            ceilings = {} if rates is None else dataclasses.asdict(rates)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**row, **ceilings, **machine}) + "\n")
        if time.monotonic() > ended:
            print(f"{of.name}: out of time; those after this one were not tried")
            break
    device.close()
    return 1 if bad else 0


def _parser(of: Pass[V]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.hopper.{of.name}", description=of.text
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    names = ", ".join(repr(each.question) for each in of.experiments)
    parser.add_argument("--questions", nargs="*", default=[], metavar="Q", help=f"of {names}")
    parser.add_argument("--batches", nargs="*", type=int, default=list(BATCHES))
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument(
        "--most", type=float, default=150.0, help="seconds of all; the rest is left"
    )
    return parser


def line(row: dict[str, Any], rates: Rates | None) -> str:
    """Return a row as text."""
    head = f"{row['status']:<7}B={row['call']['images']} {row['question']:<33}{row['variant']:<32}"
    if "p50_ms" not in row:
        return f"{head} {row['reason']}"
    share = "" if rates is None else f", {row['tflop_s'] / rates.matmul_tflop_s:.0%} of a product"
    times = f"{row['p50_ms']:.3f} ms ({row['p20_ms']:.3f} to {row['p80_ms']:.3f})"
    rate = f", {row['tflop_s']:.0f} TFLOP/s{share}" if row["tflop_s"] > 0 else ""
    return f"{head} {times}{rate}, error {row['error']:.1e}"


if __name__ == "__main__":
    sys.exit(measure_on_device(FORWARD, sys.argv[1:]))
