# SPDX-License-Identifier: MIT
"""Turn rows into markdown tables.

python -m benchmarks.report benchmarks/results/<device>.jsonl                  # all of it, printed
python -m benchmarks.report benchmarks/results/*.jsonl --into README.md        # the short table, in its place
python -m benchmarks.report --primitives benchmarks/results/primitives/*.jsonl --into docs/emulator.md
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES
from ocnet.engine.abn_workload import ABNWorkload
from ocnet.engine.measure import OK, OUT_OF_MEMORY, TOO_LARGE
from ocnet.report.style import bytes_text, time_text

Row = dict[str, Any]
_SHORT_HEADER = ("device", "case", "dtype", "form", "forward", "step", "saved", "peak")
_CONFIRMED_HEADER = ("device", "run", "bit for bit", "within rounding", "wrong or failing")
# What a user would write first; no op has both.
_PLAIN = ("naive", "published")
_SHORT_FORMS = ("fused", *_PLAIN, "sdpa")
_SHORT_FORMS_OF_ABN = ("fused", *_PLAIN, "compile")
_BEGIN = "<!-- rows: made by benchmarks.report -->"
_END = "<!-- end of rows -->"


def latest(rows: Iterable[Row]) -> list[Row]:
    """Keep the last row of each device, case, dtype, layout, form and phase, in the order they come."""
    kept: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        workload = row["workload"]
        kept[
            (
                row["device_name"],
                row["case"],
                workload["dtype"],
                workload["layout"],
                row["form"],
                row["phase"],
            )
        ] = row
    return list(kept.values())


def markdown(rows: Sequence[Row]) -> str:
    """Return one table for each device, case and dtype."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in latest(rows):
        key = (row["device_name"], row["case"], row["workload"]["dtype"])
        groups.setdefault(key, []).append(row)
    return "\n".join(_group(group) for group in groups.values())


def _group(rows: Sequence[Row]) -> str:
    first, workload = rows[0], rows[0]["workload"]
    plain = next((r["form"] for r in rows if r["form"] in _PLAIN), _PLAIN[0])
    plain_ms = {r["phase"]: r["p50_ms"] for r in rows if r["form"] == plain and r["p50_ms"]}
    header = (
        "form",
        "phase",
        "p50 (p20 to p80)",
        "x floor",
        f"vs {plain}",
        "saved",
        "peak",
        "note",
    )
    versions = f"torch {first['torch']}"
    if first["driver"]:
        versions += f", CUDA {first['cuda']}, driver {first['driver']}"
    lines = [
        f"### {first['case']}, {workload['dtype']} ({first['network']})",
        "",
        f"N {workload['N']}, {workload['H']} x {workload['W']}{_sizes(workload)}, "
        f"{workload['layout']}. "
        f"{first['device_name']}; {versions}; commit {(first['commit'] or 'unknown')[:12]}; "
        f"{first['date'][:10]}. Copy {first['copy_gb_s']:.0f} GB/s, "
        f"product {first['matmul_tflop_s']:.2f} TFLOP/s.",
        "",
        line(header),
        line(["---"] * len(header)),
        *(line(_cells(row, plain_ms.get(row["phase"]))) for row in _folded(rows)),
        "",
    ]
    return "\n".join(lines)


def _sizes(workload: Row) -> str:
    """Say what is special to the op: rows of attention do not name theirs."""
    if _is_abn(workload):
        added = ", and a residual" if workload["residual"] else ""
        return f", C {workload['C']}, leaky ReLU{added}"
    if "K" in workload:
        return f", C {workload['C']}, {workload['K']} regions"
    shared = "shared" if workload["shared"] else "separate"
    rest = f", E {workload['E']}, Ev {workload['Ev']}, {shared} query and key"
    if "partition" in workload:
        sizes = ", ".join(map(str, workload["sizes"]))
        return f", {workload['partition']} {sizes}{rest}"
    return (f", keys {workload['Hk']} x {workload['Wk']}" if workload["Hk"] else "") + rest


def _is_abn(workload: Row) -> bool:
    return workload.get("op") == ABNWorkload.op


def summary(rows: Sequence[Row]) -> str:
    """Return the short table: one line for each device, case, dtype and form that ran, or lacked memory.

    Rows of cases that are no longer registered are history, and left out, as are those of cases that
    only the long tables show.
    """
    shown = {case.name for case in CASES if case.short}
    lines: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in latest(rows):
        forms = _SHORT_FORMS_OF_ABN if _is_abn(row["workload"]) else _SHORT_FORMS
        told = row["form"] in forms and row["case"] in shown
        if told and row["status"] in (OK, TOO_LARGE, OUT_OF_MEMORY):
            workload = row["workload"]
            key = (row["device_name"], row["case"], workload["dtype"], row["form"])
            lines.setdefault(key, {})[row["phase"]] = row
    table = [line(_SHORT_HEADER), line(["---"] * len(_SHORT_HEADER))]
    for (device, case, dtype, form), phases in lines.items():
        if {"forward", "step"} <= phases.keys():
            step = phases["step"]
            backend = f" ({step['backend']})" if step["backend"] else ""
            times = [_time_or_status(phases[name]) for name in ("forward", "step")]
            table.append(line([device, case, dtype, form + backend, *times, *_memory(step)]))
    return "\n".join(table)


def _time_or_status(row: Row) -> str:
    return time_text(row["p50_ms"]) if row["status"] == OK else str(row["status"])


def _memory(row: Row) -> list[str]:
    """Return what is saved and the peak; of what did not fit, the peak that was foreseen."""
    if row["status"] == OK:
        return [bytes_text(row[name]) for name in ("saved_bytes", "peak_bytes")]
    return ["-", f"(needs {bytes_text(row['predicted_bytes'])})"]


def confirmed_table(rows: Iterable[Row]) -> str:
    """Return what the primitives do on each device, by the last row of each."""
    last = {row["device_name"]: row for row in rows}
    table = [line(_CONFIRMED_HEADER), line(["---"] * len(_CONFIRMED_HEADER))]
    for device, row in last.items():
        names = [
            ", ".join(name for name, state in row["primitives"].items() if state in states)
            or "none"
            for states in (("bitwise",), ("rounding",), ("differs", "failed"))
        ]
        run = f"{row['date'][:10]}, {(row['commit'] or 'unknown')[:12]}"
        table.append(line([device, run, *names]))
    if not last:
        table.append(line(["none", "not yet run on a device", "-", "-", "-"]))
    return "\n".join(table)


def insert(text: str, table: str, begin: str = _BEGIN, end: str = _END) -> str:
    """Put a table between the two marks of a document.

    Raises:
        ValueError: The document does not have both marks, in order.
    """
    start, stop = text.find(begin), text.find(end)
    if start < 0 or stop < start:
        raise ValueError(f"report: --into must name a file with {begin} and {end}, got neither")
    return text[: start + len(begin)] + "\n" + table + "\n" + text[stop:]


def _folded(rows: Sequence[Row]) -> list[Row]:
    """Say a refusal once for all phases."""
    kept: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row["status"] == "refused":
            kept[row["form"], row["reason"]] = {**row, "phase": "all"}
        else:
            kept[row["form"], row["phase"]] = row
    return list(kept.values())


def _cells(row: Row, plain_ms: float | None) -> list[str]:
    head = [row["form"], row["phase"]]
    if row["status"] != OK:
        return [*head, *["-"] * 5, f"{row['status']}: {row['reason']}"]
    p20, p50, p80 = (time_text(row[name]) for name in ("p20_ms", "p50_ms", "p80_ms"))
    return [
        *head,
        f"{p50} ({p20} to {p80})",
        _times_floor(row),
        f"{plain_ms / row['p50_ms']:.2f} x" if plain_ms else "-",
        "-" if row["saved_bytes"] is None else bytes_text(row["saved_bytes"]),
        "-" if row["peak_bytes"] is None else bytes_text(row["peak_bytes"]),
        "; ".join(_notes(row)),
    ]


def _times_floor(row: Row) -> str:
    """Return the time over the floor; where two passes move more than one, also over theirs."""
    ratio = row["p50_ms"] / row["floor_ms"]
    text = f"{ratio:.1f} ({row['floor_set_by']})"
    if not _is_abn(row["workload"]) or row["floor_set_by"] != "memory":
        return text
    return f"{text}, {ratio * row['io_bytes'] / row['streamed_bytes']:.1f} streamed"


def _notes(row: Row) -> list[str]:
    notes = [f"back end {row['backend']}"] if row["backend"] else []
    if _is_abn(row["workload"]) and row["saved_own_bytes"] is not None:
        # Others keep the output and the residual anyway, as inputs of theirs.
        notes.append(f"{bytes_text(row['saved_own_bytes'])} saved that no other layer keeps")
    return notes


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main(argv: Sequence[str]) -> int:
    """Print the tables of the files given."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", type=Path, help="files of rows")
    parser.add_argument("--into", type=Path, help="document to put the short table into")
    parser.add_argument("--primitives", action="store_true", help="rows say what a GPU confirmed")
    options = parser.parse_args(argv)
    rows = read_rows(options.files)
    short = confirmed_table if options.primitives else summary
    if options.into is None:
        print(short(rows) if options.primitives else markdown(rows))
        return 0
    text = options.into.read_text(encoding="utf-8")
    options.into.write_text(insert(text, short(rows)), encoding="utf-8")
    return 0


def read_rows(files: Iterable[Path]) -> list[Row]:
    """Return the rows of several files, in order."""
    return [
        json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
