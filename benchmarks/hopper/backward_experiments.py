# SPDX-License-Identifier: MIT
"""Times of the Hopper backward kernels with other choices than the shipped ones, one JSON row each.

python -m benchmarks.hopper.backward_experiments --out backward_variants.jsonl

Times are those of lse and delta, of one pass, and of the combination of its parts; rates count the
products of the pass. docs/kernels_backward.md says what is asked of each, and what follows from the answer.
"""

import sys
from dataclasses import replace
from functools import cache

from benchmarks.hopper.backward_inputs import features, rolled, saved
from benchmarks.hopper.backward_library import VARIANTS, Inputs, Variant, run
from benchmarks.hopper.backward_reference import Expected, expect, judge
from benchmarks.hopper.experiments import (
    Attempt,
    Experiment,
    Pass,
    measure_on_device,
    other,
    sampled,
)
from benchmarks.hopper.library import Call, Target

SHIPPED = Variant("kBoth", "kTokenMajor", 256, 256)
SHIPPED_ASP = replace(SHIPPED, channels=128)
KEYS = replace(SHIPPED, kind="kKeys")
QUERIES = replace(SHIPPED, kind="kQueries", cols=48)
WIDE = replace(SHIPPED, kind="kWide", channels=128, values=128, cols=48)
_NARROW = ((128, 256), (128, 128), (64, 64))


def _separate(kind: str, channels: int, values: int) -> Experiment[Variant]:
    variant = Variant(f"k{kind.capitalize()}", "kTokenMajor", channels, values)
    return Experiment(f"{kind}, {channels}/{values}", variant)


# The first is measured again at the end: what lies between the two is noise.
EXPERIMENTS = (
    Experiment("shipped", SHIPPED),
    other("blocks alone", SHIPPED, cluster=1),
    other("weights handed over", SHIPPED, hands_weights=1),
    other("product of keys first", SHIPPED, key_first=1),
    other("scores first", SHIPPED, scores_first=1),
    other("weights handed over, product of keys first", SHIPPED, hands_weights=1, key_first=1),
    other("scores first, product of keys first", SHIPPED, scores_first=1, key_first=1),
    Experiment("whole tiles", SHIPPED, whole_tiles=1),
    Experiment("own rows first", SHIPPED, own_keys_first=1),
    Experiment("as many clusters as run at once", SHIPPED, as_many_as_run=True),
    Experiment("lse and delta alone", replace(SHIPPED, kind="kNumbers")),
    Experiment("shipped, again", SHIPPED),
    Experiment("keys", KEYS),
    other("keys: blocks alone", KEYS, cluster=1),
    other("keys: weights handed over", KEYS, hands_weights=1),
    other("keys: scores first", KEYS, scores_first=1),
    Experiment("queries", QUERIES),
    other("queries: blocks alone", QUERIES, cluster=1),
    Experiment("128/256: shipped", SHIPPED_ASP),
    other("128/256: blocks alone", SHIPPED_ASP, cluster=1),
    other("128/256: weights handed over", SHIPPED_ASP, hands_weights=1),
    other("128/256: scores first", SHIPPED_ASP, scores_first=1),
    Experiment("128/128: shipped", WIDE),
    other("128/128: blocks alone", WIDE, cluster=1),
    Experiment("128/128: 64 rows", replace(SHIPPED, channels=128, values=128)),
    Experiment("64/64: shipped", replace(WIDE, channels=64, values=64, cols=64)),
    Experiment("64/64: 64 rows", replace(SHIPPED, channels=64, values=64)),
    *(_separate(kind, *room) for kind in ("keys", "queries") for room in _NARROW),
)


def prepare(call: Call) -> tuple[Inputs, Expected]:
    """Return inputs of a call, and some rows of its gradients."""
    one = _one_image(Call(1, call.queries, call.keys, call.channels, call.values))
    inputs = rolled(one, call.images)
    wanted = ["grad_query", *(["grad_key"] if call.keys else []), "grad_value"]
    return inputs, expect(call, inputs, wanted, sampled)


@cache
def _one_image(call: Call) -> Inputs:
    return saved(call, features(call))


def attempt(
    target: Target, variant: Variant, call: Call, prepared: tuple[Inputs, Expected], repeats: int
) -> Attempt:
    """Check and time one call."""
    inputs, expected = prepared
    results = run(target, variant, call, inputs, repeats=repeats)
    verdict = judge(variant, results, expected)
    error = max(verdict.errors.values(), default=0.0)
    return Attempt(error, verdict.reason, results.plan, results.times_ms)


def flops(variant: Variant, call: Call) -> int:
    """Return the operations of the products of a pass."""
    return variant.flops * call.images * call.queries * call.key_tokens


BACKWARD = Pass("backward_experiments", __doc__, VARIANTS, EXPERIMENTS, prepare, attempt, flops)

if __name__ == "__main__":
    sys.exit(measure_on_device(BACKWARD, sys.argv[1:]))
