# SPDX-License-Identifier: MIT
"""The ladder and the variants of the Hopper kernel: they run in the emulator, and they see errors."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks.hopper import experiments, ladder, model
from benchmarks.hopper.inputs import KINDS, features
from benchmarks.hopper.library import (
    ROOT,
    VARIANTS,
    Call,
    from_bfloat16,
    run,
    table,
    to_bfloat16,
)
from benchmarks.hopper.reference import expect, groups_of, judge
from benchmarks.report import insert
from tests.benchmarks.emulated_variants import Emulated, compile_variants
from tests.emulator.build import UnavailableError
from tests.emulator.device import ProbeError, build
from tests.emulator.device import UnavailableError as NoCompilerError
from tests.ptxas import complaints_of, kernels_of, spilling

SMALL = 150_000  # pairs of queries and keys that the emulator goes through in a second or so
SMALL_RUNGS = [
    rung
    for rung in ladder.RUNGS
    if rung.call.images * rung.call.queries * rung.call.key_tokens * rung.runs < SMALL
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    try:
        return Emulated(compile_variants(tmp_path_factory.mktemp("variants")))
    except UnavailableError as missing:
        pytest.skip(str(missing))


@pytest.mark.native
@pytest.mark.parametrize("rung", SMALL_RUNGS, ids=lambda rung: rung.name)
def test_rungs_are_right_in_the_emulator(emulated: Emulated, rung: ladder.Rung) -> None:
    (row,) = ladder.climb(emulated, [dataclasses.replace(rung, runs=1)], ladder.check)
    assert row["state"] == "ok", row["reason"]
    assert row["rung"] in ladder.line(row)


@pytest.mark.native
def test_of_large_maps_some_rows_are_checked(
    emulated: Emulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    rung = ladder.Rung("a map", ladder.TWO, Call(1, 600, 80))
    monkeypatch.setattr(ladder, "_SMALL", 599)
    asked = []
    monkeypatch.setattr(ladder, "expect", lambda *call: asked.append(call[2]) or expect(*call))
    (row,) = ladder.climb(emulated, [rung], ladder.check)
    assert row["state"] == "ok", row["reason"]
    assert len(asked[0]) == 192
    assert {0, 63, 536, 599} <= {*asked[0]}


@pytest.mark.native
@pytest.mark.parametrize("variant", table(), ids=lambda variant: variant.name)
def test_variants_are_right_in_the_emulator(emulated: Emulated, variant) -> None:
    groups = {"partition": (2, 2, 1, 1, 75, 1, 75, 1)} if variant.source == "kGroups" else {}
    # Groups are not cut; elsewhere tiles are, and are not there in part.
    keys = 0 if groups else 11 * variant.cols + 8
    sizes = 2, 152 if keys else 150, keys, variant.channels, variant.values
    call = Call(*sizes, workers=12 // variant.cluster, **groups)
    inputs = features(call)
    results = run(emulated, variant, call, inputs)
    verdict = judge(results, expect(call, inputs))
    assert not verdict.reason
    assert results.plan.shared_bytes <= 232448
    assert (results.plan.steps > 0) == (not groups)


@pytest.mark.native
def test_experiments_say_what_they_ran(emulated: Emulated) -> None:
    rows = list(experiments.measure(emulated, experiments.EXPERIMENTS, [1], tokens=300, repeats=0))
    assert [row["status"] for row in rows] == ["ok"] * len(experiments.EXPERIMENTS)
    by_question = {row["question"]: row for row in rows}
    assert len(by_question) == len(rows)
    assert by_question["whole tiles"]["plan"]["steps"] == 0
    assert by_question["first keys first"]["call"]["own_keys_first"] == 0
    assert by_question["blocks alone"]["plan"]["tiles"] == 3
    assert by_question["shipped"]["plan"]["tiles"] == 2
    json.dumps(rows)


def test_every_experiment_has_its_kernel() -> None:
    known = table()
    assert all(each.variant in known for each in experiments.EXPERIMENTS)
    assert all(rung.variant in known for rung in ladder.RUNGS)
    assert len({rung.name for rung in ladder.RUNGS}) == len(ladder.RUNGS)


@pytest.mark.native
def test_variants_compile_without_spills() -> None:
    """As shipped, and otherwise: what spills would be measured for nothing."""
    try:
        log = build(VARIANTS)[1].read_text()
    except NoCompilerError as missing:
        pytest.skip(str(missing))
    kernels = [kernel for kernel in kernels_of(log) if "hopper_fwd" in kernel.name]
    assert len(kernels) == len(table())
    assert spilling(kernels) == []
    assert complaints_of(log) == []


def test_the_model_knows_the_plans_of_the_kernel() -> None:
    try:
        found = dict(zip((s.case for s in model.SHAPES), model.plans(model.SHAPES), strict=True))
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    plan = found["base-97-n2"]
    assert (plan.cols, plan.cluster, plan.tiles, plan.steps) == (80, 2, 74, 118)
    assert plan.longest * 66 >= 74 * 118 > (plan.longest - 1) * 66
    assert found["base-97-v512-n4"].tiles == 2 * found["base-97-n4"].tiles
    assert found["whole-129x257"].parts == 0
    forecasts = {s.case: model.forecast(s, found[s.case]) for s in model.SHAPES}
    step = forecasts["base-97-n4"]
    assert (step.tensor, step.shared) == (2560, 2432)
    assert step.l2_bytes == 16
    assert all(each.tflop_s < model.PRODUCT_TFLOP_S for each in forecasts.values())
    assert all(each.busy <= 1 for each in forecasts.values())


def test_the_page_of_the_kernel_shows_what_the_model_foretells() -> None:
    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    try:
        assert insert(text, model.tables(), model.BEGIN, model.END) == text
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


def test_times_become_rates() -> None:
    times = experiments._times(Call(8, 97 * 97), [1.0, 1.2, 1.1, 1.3, 1.15])
    assert times["p50_ms"] == 1.15
    assert times["tflop_s"] == pytest.approx(0.7252 / 1.15 * 1e3, rel=1e-3)
    row = {"status": "ok", "question": "shipped", "variant": "v", "error": 1e-3, "reason": ""}
    row |= {"call": {"images": 8}, **times}
    assert "631 TFLOP/s" in experiments.line(row, None)


def test_numbers_of_bfloat16() -> None:
    exact = np.array([0.0, 1.0, -2.5, 255.0, 2.0**-130])
    assert np.array_equal(from_bfloat16(to_bfloat16(exact)), exact)
    assert from_bfloat16(to_bfloat16(np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8]))).tolist() == [
        1.0,
        1 + 2.0**-6,
    ]
    assert np.isnan(from_bfloat16(np.array([0xFFFF], np.uint16)))[0]


def test_groups_are_cells_and_strides() -> None:
    cells = groups_of(Call(1, 30, partition=(5, 2, 2, 1, 6, 3, 2, 1))).reshape(5, 6)
    assert cells[0].tolist() == [0, 0, 1, 1, 2, 2]
    assert cells[:, 0].tolist() == [0, 0, 3, 3, 3]
    strided = groups_of(Call(1, 24, partition=(4, 2, 1, 2, 6, 3, 1, 3))).reshape(4, 6)
    assert strided[0].tolist() == [0, 1, 2, 0, 1, 2]
    assert strided[:, 0].tolist() == [0, 3, 0, 3]


class Wrong:
    """Kernels that are right but for what `spoil` does to their results."""

    def __init__(self, spoil, calls: int = 99) -> None:
        self._spoil = spoil
        self._right = calls  # calls after which results are spoiled

    def run_probe(self, name, buffers, arguments=()) -> None:
        out, residual, lse = buffers[3:6]
        call = Call(1, out.shape[1], 80)
        maps = ladder.KINDS["features"](call)
        expected = expect(call, maps)
        out[...] = to_bfloat16(expected.out)
        residual[...] = to_bfloat16(expected.out - from_bfloat16(out))
        lse[...] = expected.lse
        self._right -= 1
        if self._right < 0:
            self._spoil(out, residual, lse)


RUNG = ladder.Rung("one step", ladder.ONE, Call(1, 128, 80))


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ((0, slice(None), slice(64, 128)), "lines of 64 channels 1; channels of a line all"),
        ((0, slice(8, 24), slice(None)), "atoms of 8 rows 1-2; rows of an atom all"),
        ((0, slice(3, None, 8), slice(None)), "rows of an atom 3; lines of 64 channels all"),
        ((0, 7, 200), "first at image 0, row 7, channel 200"),
    ],
)
def test_wrong_places_are_named(place, told) -> None:
    def spoil(out, residual, lse) -> None:
        out[place] ^= 0x0100

    (row,) = ladder.climb(Wrong(spoil, 0), [RUNG], ladder.check)
    assert row["state"] == "wrong"
    assert told in row["reason"]
    assert told in ladder.line(row)


def test_results_that_were_not_written_are_wrong() -> None:
    def spoil(out, residual, lse) -> None:
        lse[0, 100:] = np.nan

    (row,) = ladder.climb(Wrong(spoil, 0), [RUNG], ladder.check)
    assert "lse: 21.9% wrong, 28 not finite" in row["reason"]


def test_results_that_move_are_told() -> None:
    def spoil(out, residual, lse) -> None:
        out[0, 5, 5] ^= 1

    (row,) = ladder.climb(Wrong(spoil, 1), [dataclasses.replace(RUNG, runs=3)], ladder.check)
    assert row["state"] == "moves"
    assert "run 2 are others than those of run 1" in row["reason"]


def test_a_rung_that_hangs_does_not_stop_the_others() -> None:
    class Hanging(Wrong):
        def run_probe(self, name, buffers, arguments=()) -> None:
            super().run_probe(name, buffers, arguments)
            if self._right < 0:
                raise ProbeError(f"{name}: not done after 20 s")

    rows = list(ladder.climb(Hanging(lambda *_: None, 1), [RUNG, RUNG, RUNG], ladder.check))
    assert [row["state"] for row in rows] == ["ok", "failed", "failed"]
    assert "not done after 20 s" in ladder.line(rows[1])


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_exact_in_bfloat16(kind: str) -> None:
    call = Call(2, 30, 40, 16, 24)
    inputs = KINDS[kind](call)
    for maps, shape in zip(
        (inputs.query, inputs.key, inputs.value),
        ((2, 30, 16), (2, 40, 16), (2, 40, 24)),
        strict=True,
    ):
        assert maps.shape == shape
        assert np.array_equal(from_bfloat16(to_bfloat16(maps)), maps)
