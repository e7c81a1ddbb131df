# SPDX-License-Identifier: MIT
"""Measure the registered cases and append one JSON row for each (case, form, phase).

python -m benchmarks.run --device cpu
python -m benchmarks.run --device cuda --cases base-97-n8 --forms fused naive sdpa
"""

import argparse
import datetime
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import baselines, gate
from benchmarks.backends import OURS, is_ours
from benchmarks.cases import CASES, Case, select
from benchmarks.rates import Rates, measure_rates
from ocnet.engine.environment import source_commit, versions
from ocnet.engine.measure import FAILED, OK, REFUSED, Job, Measurement, first_line, run_jobs
from ocnet.engine.meters import device_name
from ocnet.engine.workload import PHASES, Call, Form

WRONG = "wrong"
_SECONDS = {"cpu": 1.0, "cuda": 0.3}  # of repeats for each row; a GPU call takes milliseconds
RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str]) -> int:
    """Run the program; 1 if a form of this package is wrong or fails, 2 if it cannot start."""
    options = _parser().parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks: --device cuda must have a CUDA device, got none", file=sys.stderr)
        return 2
    try:
        cases = select(options.cases, options.device, options.quick)
        _check_forms(options.forms)
        _check_dtypes(options.dtypes, cases, options.device)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    machine = describe_machine(options.device)
    out = options.out
    if out is None:
        out = RESULTS / f"{slug(machine['device_name'])}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    bad = 0
    with out.open("a", encoding="utf-8") as file:
        for row in rows(cases, options):
            file.write(json.dumps(row | machine) + "\n")
            file.flush()
            print(_line(row), flush=True)
            bad += is_ours(row["form"]) and row["status"] in (WRONG, FAILED)
    print(f"rows appended to {out}; python -m benchmarks.report {out} makes a table of them")
    if bad:
        print(f"benchmarks: {bad} rows of this package's own forms are wrong or failed")
    return 1 if bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    names = ", ".join(case.name for case in CASES)
    parser.add_argument("--cases", nargs="*", default=[], metavar="CASE", help=f"of {names}")
    forms = ", ".join(baselines.NAMES)
    parser.add_argument("--forms", nargs="*", default=[], metavar="FORM", help=f"of {forms}")
    parser.add_argument("--dtypes", nargs="*", default=[], metavar="DTYPE", help="of the cases'")
    parser.add_argument("--phases", nargs="+", default=list(PHASES), choices=PHASES)
    parser.add_argument("--quick", action="store_true", help="the smallest case, fewest repeats")
    parser.add_argument(
        "--out",
        type=Path,
        help="JSON lines to append to; default benchmarks/results/<device>.jsonl",
    )
    return parser


def _check_forms(names: Sequence[str]) -> None:
    for name in names:
        if name not in baselines.NAMES:
            known = ", ".join(baselines.NAMES)
            raise ValueError(f"benchmarks: --forms must be of {known}, got {name}")


def _check_dtypes(names: Sequence[str], cases: Sequence[Case], device: str) -> None:
    known = sorted({workload.dtype for case in cases for workload in case.on(device)})
    for name in names:
        if name not in known:
            raise ValueError(f"benchmarks: --dtypes must be of {', '.join(known)}, got {name}")


def _forms(names: Sequence[str], workload: Call) -> list[Form]:
    """Return the forms asked for that the workload's op has; all of them where none is named."""
    known = baselines.forms_of(workload)
    return [known[name] for name in names or known if name in known]


def _distinct(forms: Sequence[Form], workload: Call) -> list[Form]:
    """Leave out those of this package that run the kernels of one before them."""
    seen: set[str] = set()
    kept = []
    for form in forms:
        kernels = None if form.refuses(workload) else baselines.kernels_of(form.name, workload)
        # What is named by its back end says so in its row; what overwrites its input is another.
        if kernels in seen and form.name.startswith(OURS):
            continue
        seen |= {kernels} if kernels else set()
        kept.append(form)
    return kept


def rows(cases: Sequence[Case], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one row for each case, form and phase; a form that is wrong yields no times."""
    rates: dict[str, Rates] = {}
    device, quick = options.device, options.quick
    for case in cases:
        for workload in case.on(device):
            if options.dtypes and workload.dtype not in options.dtypes:
                continue
            if workload.dtype not in rates:
                rates[workload.dtype] = measure_rates(device, workload.dtype, quick=quick)
            expected = gate.Expected.of(workload)
            for form in _distinct(_forms(options.forms, workload), workload):
                verdict, status, reason = _judge(form, workload, expected)
                phases = [phase for phase in options.phases if phase in form.phases]
                for measurement in _measure(form, workload, phases, quick, status, reason):
                    yield _row(case, measurement, verdict, rates[workload.dtype])


def _judge(
    form: Form, workload: Call, expected: gate.Expected
) -> tuple[gate.Verdict | None, str, str]:
    """Return what the gate says of a form, and status and reason if it is not to be measured."""
    refusal = form.refuses(workload)
    if refusal:
        return None, REFUSED, refusal
    try:
        verdict = gate.check(form, expected)
    except Exception as error:  # of any kind: baselines end in compilers and drivers
        return None, FAILED, f"the check failed: {first_line(error)}"
    if not verdict.ok:
        reason = f"{verdict.worst} is off by {verdict.error:.2e}, allowed {verdict.bound:.2e}"
        return verdict, WRONG, reason
    return verdict, OK, ""


def _measure(
    form: Form, workload: Call, phases: Sequence[str], quick: bool, status: str, reason: str
) -> Iterator[Measurement]:
    if status != OK:
        for phase in phases:
            predicted = form.predicted_bytes(workload, phase)
            yield Measurement(workload, form.name, phase, status, predicted, reason)
        return
    least = 1 if quick else 5
    budget = 0.0 if quick else _SECONDS[workload.device]
    yield from run_jobs([Job(form, workload, phase, budget, least) for phase in phases])


def _row(
    case: Case, measurement: Measurement, verdict: gate.Verdict | None, rates: Rates
) -> dict[str, Any]:
    floor, limit = rates.floor_ms(measurement.workload, measurement.phase)
    record = measurement.to_record()
    time = record.pop("time")
    flops = measurement.workload.flops(measurement.phase)
    return {
        "case": case.name,
        "network": case.network,
        "backend": baselines.backend_of(measurement.form, measurement.workload),
        "kernels": baselines.kernels_of(measurement.form, measurement.workload),
        **record,
        "p20_ms": time and time["p20"],
        "p50_ms": time and time["p50"],
        "p80_ms": time and time["p80"],
        "repeats": time and time["repeats"],
        "tflop_s": time and flops / time["p50"] / 1e9,
        "floor_ms": floor,
        "floor_set_by": limit,
        "share_of_floor": time and floor / time["p50"],
        "io_bytes": measurement.workload.io_bytes(measurement.phase),
        "streamed_bytes": measurement.workload.streamed_bytes(measurement.phase),
        "copy_gb_s": rates.copy_gb_s,
        "matmul_tflop_s": rates.matmul_tflop_s,
        "gate_worst": verdict and verdict.worst,
        "gate_error": verdict and verdict.error,
        "gate_bound": verdict and verdict.bound,
    }


def describe_machine(device: str) -> dict[str, Any]:
    """Return what a row must say of where it was made: commit, device, driver, versions, date."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "commit": source_commit(),
        "device_name": device_name(torch.device(device)),
        **versions(),
        "date": now.isoformat(timespec="seconds"),
    }


def slug(name: str) -> str:
    """Return a device's name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _line(row: dict[str, Any]) -> str:
    workload = row["workload"]
    head = f"{row['case']:<20} {workload['dtype']:<9} {row['form']:<16} {row['phase']:<9}"
    if row["status"] != OK:
        return f"{head} {row['status']}: {row['reason']}"
    times = f"{row['p50_ms']:10.3f} ms ({row['p20_ms']:.3f} to {row['p80_ms']:.3f})"
    rate = f"{row['tflop_s']:7.2f} TFLOP/s, {row['share_of_floor']:.0%} of the floor's pace"
    return f"{head} {times} {rate}, {row['gate_worst']} off by {row['gate_error']:.1e}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
