# SPDX-License-Identifier: MIT
"""Each primitive of the hardware layer against the tables of the PTX ISA, emulated and on a GPU."""

import pytest

from tests.emulator.cases import CASES
from tests.emulator.trials import check, same_bits

pytestmark = pytest.mark.native


@pytest.mark.parametrize("case", CASES, ids=str)
def test_does_what_the_isa_says(target, case):
    trial = case.trial()
    check(trial, target, trial.run(target, case.probe))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_schedule_changes_a_bit(emulated, case):
    trial = case.trial()
    results = []
    for seed in (1, 2):
        emulated.module.configure(seed=seed)
        results.append(trial.run(emulated, case.probe))
    assert all(same_bits(results[0][index], results[1][index]) for index in trial.expected)


def test_a_device_before_sm_90_has_no_clusters(emulated):
    alone, together = (c for c in CASES if c.probe == "cluster" and str(c)[-1] in "12")
    emulated.module.configure(clusters=False)
    check(alone.trial(), emulated, alone.trial().run(emulated, alone.probe))
    with pytest.raises(RuntimeError, match="launched with clusters of 1, before sm_90, got 2"):
        together.trial().run(emulated, together.probe)


def test_every_probe_has_a_case(emulator):
    assert set(emulator.primitive_probe_names()) == {case.probe for case in CASES}


def test_cases_have_names_of_their_own():
    names = [str(case) for case in CASES]
    assert len(set(names)) == len(names)
