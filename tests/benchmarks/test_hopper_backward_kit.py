# SPDX-License-Identifier: MIT
"""The ladder and the variants of the Hopper backward kernels: they run in the emulator, and they see errors."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks.hopper import backward_experiments as experiments
from benchmarks.hopper import backward_ladder as backward
from benchmarks.hopper import ladder
from benchmarks.hopper.backward_inputs import KINDS, Maps, features, rolled, saved
from benchmarks.hopper.backward_library import VARIANTS, Inputs, Variant, run, table
from benchmarks.hopper.backward_reference import expect, judge
from benchmarks.hopper.experiments import line, measure
from benchmarks.hopper.library import Call, Partition, from_bfloat16, to_bfloat16
from benchmarks.hopper.library import Inputs as Operands
from tests.benchmarks.emulated_variants import Emulated, compile_variants
from tests.emulator.build import UnavailableError
from tests.emulator.device import UnavailableError as NoCompilerError
from tests.emulator.device import build
from tests.ptxas import complaints_of, kernels_of, spilling

SMALL = 33_000  # pairs of queries and keys that the emulator goes through in half a second or so
SMALL_RUNGS = [
    rung
    for rung in backward.RUNGS
    if rung.call.images * rung.call.queries * rung.call.key_tokens < SMALL
]
HUNDRED = to_bfloat16(np.array([100.0]))[0]
GROUPS: Partition = (2, 2, 1, 1, 75, 1, 75, 1)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    try:
        folder = tmp_path_factory.mktemp("backward_variants")
        return Emulated(compile_variants(folder, "OCNET_BACKWARD"))
    except UnavailableError as missing:
        pytest.skip(str(missing))


@pytest.mark.native
@pytest.mark.parametrize("rung", SMALL_RUNGS, ids=lambda rung: rung.name)
def test_rungs_are_right_in_the_emulator(emulated: Emulated, rung: backward.Rung) -> None:
    (row,) = ladder.climb(emulated, [dataclasses.replace(rung, runs=1)], backward.check)
    assert row["state"] == "ok", row["reason"]
    assert row["rung"] in ladder.line(row)


@pytest.mark.native
@pytest.mark.parametrize("variant", table(), ids=lambda variant: variant.name)
def test_variants_are_right_in_the_emulator(emulated: Emulated, variant: Variant) -> None:
    """Two steps, the last one in part."""
    has_groups = variant.source == "kGroups"
    queries = 150 if has_groups else 70
    keys = 0 if not variant.has_own_keys else 150 if has_groups else 90
    sizes = 1, queries, keys, variant.channels, variant.values
    call = Call(*sizes, partition=GROUPS) if has_groups else Call(*sizes)
    inputs = saved(call, features(call))
    results = run(emulated, variant, call, inputs)
    verdict = judge(variant, results, expect(call, inputs, variant.gradients(call)))
    assert not verdict.reason
    assert set(verdict.errors) == set(variant.gradients(call))
    assert results.plan.shared_bytes <= 232448


@pytest.mark.native
@pytest.mark.parametrize("variant", [backward.KEYS, backward.QUERIES], ids=lambda each: each.kind)
def test_tiles_are_cut(emulated: Emulated, variant: Variant) -> None:
    call = Call(1, *((1024, 64) if variant.kind == "kKeys" else (64, 600)), workers=2)
    inputs = saved(call, features(call))
    results = run(emulated, variant, call, inputs)
    assert results.plan.steps > 0
    assert not judge(variant, results, expect(call, inputs, variant.gradients(call))).reason


@pytest.mark.native
def test_experiments_say_what_they_ran(emulated: Emulated) -> None:
    rows = list(measure(emulated, experiments.BACKWARD, [1], tokens=70, repeats=0))
    assert [row["status"] for row in rows] == ["ok"] * len(experiments.EXPERIMENTS)
    by_question = {row["question"]: row for row in rows}
    assert len(by_question) == len(rows)
    assert by_question["own rows first"]["call"]["own_keys_first"] == 1
    assert by_question["blocks alone"]["plan"]["tiles"] == 2
    assert by_question["shipped"]["plan"]["tiles"] == 1
    assert by_question["shipped"]["call"]["keys"] == 0
    assert by_question["queries"]["call"]["keys"] == 70
    json.dumps(rows)


def test_every_experiment_has_its_kernel() -> None:
    known = table()
    assert all(each.variant in known for each in experiments.EXPERIMENTS)
    assert all(rung.variant in known for rung in backward.RUNGS)
    assert len({rung.name for rung in backward.RUNGS}) == len(backward.RUNGS)
    # Every shipped tile has a rung.
    shipped = {
        each
        for each in known
        if each.cluster == (1 if each.source == "kGroups" else 2)
        and not (each.hands_weights or each.scores_first or each.key_first)
        and (each.kind != "kBoth" or each.values == 256 or each.source == "kGroups")
    }
    assert len(shipped) == 17
    assert shipped <= {rung.variant for rung in backward.RUNGS}


@pytest.mark.native
def test_variants_compile_without_spills() -> None:
    """As shipped, and otherwise: what spills would be measured for nothing."""
    try:
        log = build(VARIANTS)[1].read_text()
    except NoCompilerError as missing:
        pytest.skip(str(missing))
    kernels = [kernel for kernel in kernels_of(log) if "Variant" in kernel.name]
    assert len(kernels) == sum(each.kind != "kNumbers" for each in table())
    assert spilling(kernels_of(log)) == []
    assert complaints_of(log) == []


def test_times_become_rates() -> None:
    flops = experiments.flops(experiments.SHIPPED, Call(8, 97 * 97))
    assert flops == 2 * 5 * 256 * 8 * (97 * 97) ** 2
    row = {"status": "ok", "question": "shipped", "variant": "v", "error": 1e-3, "reason": ""}
    row |= {"call": {"images": 8}, "p20_ms": 3.0, "p50_ms": 3.2, "p80_ms": 3.4}
    assert "567 TFLOP/s" in line({**row, "tflop_s": flops / 3.2 / 1e9}, None)
    assert "TFLOP" not in line({**row, "tflop_s": 0.0}, None)


@pytest.mark.parametrize("keys", [0, 45])
def test_images_of_a_batch_are_those_of_one_moved_along(keys: int) -> None:
    call = Call(2, 110, keys, 8, 16)
    one = dataclasses.replace(call, images=1)
    both = rolled(saved(one, features(one)), 2)
    assert (both.key is both.query) == (keys == 0)
    assert not np.array_equal(both.query[0], both.query[1])
    again = saved(call, Maps(Operands(both.query, both.key, both.value), both.grad_out))
    assert np.allclose(again.context, both.context, rtol=1e-9, atol=1e-12)
    assert np.allclose(again.lse, both.lse, rtol=1e-12)


@pytest.mark.parametrize("keys", [0, 45])
def test_references_are_the_gradients_of_attention(keys: int) -> None:
    """By differences of a sum of results, in a direction for each operand."""
    call = Call(1, 40, keys, 8, 12)
    inputs = saved(call, features(call))
    names = ["grad_query", "grad_key", "grad_value"] if keys else ["grad_query", "grad_value"]
    expected = expect(call, inputs, names)
    random = np.random.default_rng(5)

    def objective(**maps: np.ndarray) -> float:
        operands = {"query": inputs.query, "key": inputs.key, "value": inputs.value} | maps
        if not keys:
            operands["key"] = operands["query"]
        scores = operands["query"][0] @ operands["key"][0].T * call.scale
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        return float((weights @ operands["value"][0] * inputs.grad_out[0]).sum())

    for name in names:
        of = name.removeprefix("grad_")
        there = getattr(inputs, of)
        direction = random.standard_normal(there.shape)
        step = 1e-5
        ahead = objective(**{of: there + step * direction})
        behind = objective(**{of: there - step * direction})
        told = float((expected.gradients[name].exact * direction).sum())
        assert told == pytest.approx((ahead - behind) / (2 * step), rel=1e-6)
        some = expect(call, inputs, [name], lambda _: [3, 17]).gradients[name]
        assert np.allclose(some.exact, expected.gradients[name].exact[:, [3, 17]])


class Wrong:
    """Kernels that are right but for what `spoil` does to their results."""

    def __init__(self, call: Call, inputs: Inputs, spoil, calls: int = 0) -> None:
        self._expected = expect(call, inputs, ["grad_query", "grad_value"])
        self._spoil = spoil
        self._right = calls  # calls after which results are spoiled

    def run_probe(self, name, buffers, arguments=()) -> None:
        numbers, query, _, value = buffers[7:11]
        numbers[...] = 0
        numbers[:, : self._expected.numbers.shape[1]] = self._expected.numbers
        for gradient, of in ((query, "grad_query"), (value, "grad_value")):
            gradient[...] = to_bfloat16(self._expected.gradients[of].exact)
        self._right -= 1
        if self._right < 0:
            self._spoil(numbers, query, value)


RUNG = backward.Rung("two steps", backward.ALONE, Call(1, 100))


def climb_wrong(spoil, rung: backward.Rung = RUNG, calls: int = 0) -> dict:
    inputs = saved(rung.call, features(rung.call))
    (row,) = ladder.climb(Wrong(rung.call, inputs, spoil, calls), [rung], backward.check)
    return row


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ((0, slice(None), slice(64, 128)), "lines of 64 channels 1; channels of a line all"),
        ((0, slice(8, 24), slice(None)), "atoms of 8 rows 1-2; rows of an atom all"),
        ((0, 7, 200), "first at image 0, row 7, channel 200"),
    ],
)
@pytest.mark.parametrize("which", ["grad_query", "grad_value"])
def test_wrong_places_are_named(place, told: str, which: str) -> None:
    def spoil(numbers, query, value) -> None:
        {"grad_query": query, "grad_value": value}[which][place] = HUNDRED

    row = climb_wrong(spoil)
    assert row["state"] == "wrong"
    assert row["reason"].startswith(f"{which}: ")
    assert told in ladder.line(row)


def test_wrong_numbers_are_named() -> None:
    def spoil(numbers, query, value) -> None:
        numbers[0, 100:, 0] = 1.0  # behind the last token

    told = climb_wrong(spoil)["reason"]
    assert told.startswith("lse (0) and delta (1): ")
    assert "first at image 0, row 100, channel 0" in told


def test_results_that_were_not_written_are_wrong() -> None:
    def spoil(numbers, query, value) -> None:
        value[0, 90:] = 0xFFFF

    assert "grad_value: 10.0% wrong, 2560 not finite" in climb_wrong(spoil)["reason"]


def test_results_that_move_are_told() -> None:
    def spoil(numbers, query, value) -> None:
        query[0, 5, 5] ^= 1

    row = climb_wrong(spoil, dataclasses.replace(RUNG, runs=3), calls=1)
    assert row["state"] == "moves"
    assert "run 2 are others than those of run 1" in row["reason"]


@pytest.mark.parametrize("keys", [0, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_exact_in_bfloat16(kind: str, keys: int) -> None:
    call = Call(2, 30, keys, 16, 24, equal_weights=kind.endswith("of keys"))
    maps = KINDS[kind](call)
    given = (maps.operands.query, maps.operands.key, maps.operands.value, maps.grad_out)
    tokens = keys or 30
    shapes = ((2, 30, 16), (2, tokens, 16), (2, tokens, 24), (2, 30, 24))
    for each, shape in zip(given, shapes, strict=True):
        assert each.shape == shape
        assert np.array_equal(from_bfloat16(to_bfloat16(each)), each)


def test_inputs_that_name_tokens_need_equal_weights() -> None:
    with pytest.raises(ValueError, match="must have equal weights"):
        KINDS["tokens of keys"](Call(1, 30))
