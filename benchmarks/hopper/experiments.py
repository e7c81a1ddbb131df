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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.hopper.inputs import features
from benchmarks.hopper.library import VARIANTS, Call, Inputs, Target, Variant, run
from benchmarks.hopper.reference import Expected, expect, judge
from benchmarks.rates import Rates, measure_rates
from benchmarks.run import describe_machine
from ocnet.ops.oc_attention.flops import forward_flops
from tests.emulator.device import Device, ProbeError, UnavailableError, build

SHIPPED = Variant("kTokenMajor", 256, 256, 80)
SHIPPED_ASP = Variant("kTokenMajor", 128, 256, 96)
TOKENS = 97 * 97
BATCHES = (2, 4, 8)
_SAMPLES = 64  # rows of each image that float64 checks


@dataclass(frozen=True)
class Experiment:
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
    variant: Variant
    own_keys_first: int = -1
    whole_tiles: int = 0
    as_many_as_run: bool = False

    def call(self, images: int, tokens: int) -> Call:
        """Return the call of a batch."""
        return Call(
            images,
            tokens,
            channels=self.variant.channels,
            values=self.variant.values,
            own_keys_first=self.own_keys_first,
            whole_tiles=self.whole_tiles,
        )


def _other(question: str, base: Variant = SHIPPED, **changes: int) -> Experiment:
    return Experiment(question, Variant(**{**dataclasses.asdict(base), **changes}))


# The first is measured again at the end: what lies between the two is noise.
EXPERIMENTS = (
    Experiment("shipped", SHIPPED),
    _other("blocks alone", cluster=1),
    _other("references raised at once", growth=0),
    _other("turns", turns=1),
    _other("64 keys", cols=64),
    Experiment("whole tiles", SHIPPED, whole_tiles=1),
    Experiment("first keys first", SHIPPED, own_keys_first=0),
    Experiment("as many clusters as run at once", SHIPPED, as_many_as_run=True),
    _other("blocks alone, turns", cluster=1, turns=1),
    _other("64 keys, turns", cols=64, turns=1),
    _other("64 keys, blocks alone", cols=64, cluster=1),
    Experiment("shipped, again", SHIPPED),
    Experiment("128/256: shipped", SHIPPED_ASP),
    _other("128/256: blocks alone", SHIPPED_ASP, cluster=1),
    _other("128/256: turns", SHIPPED_ASP, turns=1),
    _other("128/256: 80 keys", SHIPPED_ASP, cols=80),
)


def measure(
    target: Target,
    experiments: Sequence[Experiment],
    batches: Sequence[int],
    *,
    tokens: int = TOKENS,
    repeats: int = 50,
) -> Iterator[dict[str, Any]]:
    """Yield a row for each experiment and batch, batch by batch."""
    references: dict[tuple[int, int], Expected] = {}
    at_once: dict[Variant, int] = {}
    for images in batches:
        for experiment in experiments:
            call = experiment.call(images, tokens)
            if experiment.as_many_as_run:
                call = dataclasses.replace(call, workers=at_once.get(experiment.variant, 0))
            inputs = features(call)
            key = call.channels, images
            if key not in references:
                rows = np.linspace(0, tokens - 1, min(tokens, _SAMPLES)).astype(int)
                references[key] = expect(call, inputs, [int(row) for row in rows])
            row = _row(target, experiment, call, inputs, references[key], repeats)
            if "plan" in row:
                at_once[experiment.variant] = row["plan"]["clusters_at_once"]
            yield row


def _row(
    target: Target,
    experiment: Experiment,
    call: Call,
    inputs: Inputs,
    expected: Expected,
    repeats: int,
) -> dict[str, Any]:
    """Check and time one call; ``status`` is ``ok``, ``wrong`` or ``failed``."""
    variant = experiment.variant
    asked = {"question": experiment.question, "variant": variant.name}
    row: dict[str, Any] = {**asked, "call": dataclasses.asdict(call)}
    try:
        results = run(target, variant, call, inputs, residual=False, repeats=repeats)
    except ProbeError as error:
        return {**row, "status": "failed", "reason": str(error)}
    verdict = judge(results, expected)
    row |= {"error": verdict.error, "plan": results.plan._asdict(), "reason": verdict.reason}
    if verdict.reason:
        return {**row, "status": "wrong"}
    return {**row, "status": "ok", **_times(call, [float(each) for each in results.times_ms])}


def _times(call: Call, times_ms: Sequence[float]) -> dict[str, Any]:
    if not times_ms:
        return {}
    flops = forward_flops(call.images, call.queries, call.key_tokens, call.channels, call.values)
    p20, p50, p80 = (float(each) for each in np.percentile(times_ms, (20, 50, 80)))
    times = {"p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "repeats": len(times_ms)}
    return {**times, "tflop_s": flops / p50 / 1e9}


def main(argv: Sequence[str]) -> int:
    """Run the program; 1 if a variant fails or is wrong, 2 if none can run."""
    options = _parser().parse_args(argv)
    try:
        device = Device(build(VARIANTS)[0])
    except UnavailableError as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 2
    rates = measure_rates("cuda", "bfloat16") if torch.cuda.is_available() else None
    machine = describe_machine("cuda")
    bad, ended = 0, time.monotonic() + options.most
    chosen = [each for each in EXPERIMENTS if _is_wanted(each, options.questions)]
    for row in measure(device, chosen, options.batches, repeats=options.repeats):
        bad += int(row["status"] != "ok")
        print(line(row, rates), flush=True)
        if options.out is not None:
            ceilings = {} if rates is None else dataclasses.asdict(rates)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**row, **ceilings, **machine}) + "\n")
        if time.monotonic() > ended:
            print("experiments: out of time; those after this one were not tried")
            break
    device.close()
    return 1 if bad else 0


def _is_wanted(experiment: Experiment, questions: Sequence[str]) -> bool:
    return not questions or experiment.question in questions


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hopper.experiments", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    names = ", ".join(repr(each.question) for each in EXPERIMENTS)
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
    if "tflop_s" not in row:
        return f"{head} {row['reason']}"
    share = "" if rates is None else f", {row['tflop_s'] / rates.matmul_tflop_s:.0%} of a product"
    times = f"{row['p50_ms']:.3f} ms ({row['p20_ms']:.3f} to {row['p80_ms']:.3f})"
    return f"{head} {times}, {row['tflop_s']:.0f} TFLOP/s{share}, error {row['error']:.1e}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
