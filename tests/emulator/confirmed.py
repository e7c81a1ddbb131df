# SPDX-License-Identifier: MIT
"""What a GPU has confirmed: it and the emulator run the same trials, and a row says how they agree."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.run import RESULTS, describe_machine, slug
from tests.emulator.device import ProbeError
from tests.emulator.trials import Case, check, same_bits

# From best to worst. A primitive is as good as the worst of its cases.
BITWISE, ROUNDING, DIFFERS, FAILED = STATES = ("bitwise", "rounding", "differs", "failed")
FOLDER = RESULTS / "primitives"


@dataclass(frozen=True)
class Verdict:
    state: str
    reason: str = ""


def judge(case: Case, device, emulated) -> Verdict:
    """Run a trial on both. The emulator's results are right or this raises."""
    trial = case.trial()
    expected = trial.run(emulated, case.probe)
    check(trial, emulated, expected)
    try:
        results = trial.run(device, case.probe)
        check(trial, device, results)
    except ProbeError as error:
        return Verdict(FAILED, str(error))
    except AssertionError as error:
        return Verdict(DIFFERS, " ".join(str(error).split())[:300])
    if all(same_bits(results[index], expected[index]) for index in results):
        return Verdict(BITWISE)
    return Verdict(ROUNDING)


def row_of(verdicts: Mapping[Case, Verdict]) -> dict[str, Any]:
    """Return the row of a whole run, less the machine it ran on."""
    states: dict[str, str] = {}
    for case, verdict in verdicts.items():
        worst = max(states.get(case.primitive, BITWISE), verdict.state, key=STATES.index)
        states[case.primitive] = worst
    reasons = {str(case): verdict.reason for case, verdict in verdicts.items() if verdict.reason}
    return {"cases": len(verdicts), "primitives": states, "reasons": reasons}


def append_row(verdicts: Mapping[Case, Verdict], folder: Path = FOLDER) -> Path:
    """Append the row of a run to the file of this machine's GPU."""
    machine = describe_machine("cuda")
    path = folder / f"{slug(machine['device_name'])}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row_of(verdicts) | machine) + "\n")
    return path
