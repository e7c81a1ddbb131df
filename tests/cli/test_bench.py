# SPDX-License-Identifier: MIT
"""``ocnet bench``: the table, the rows, and wrong options."""

import json
from pathlib import Path

import pytest

from ocnet.cli.main import main
from ocnet.engine import measure


def test_bench_prints_a_row_for_each_form_and_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    # Without fresh processes, whose start is what takes time here.
    monkeypatch.setattr(measure, "run_jobs", lambda jobs: (job.run() for job in jobs))
    path = tmp_path / "rows.jsonl"
    words = ["bench", "--device", "cpu", "--sizes", "4", "3x5", "--forms", "naive"]
    words += ["--channels", "8", "--value-channels", "16", "--seconds", "0", "--json", str(path)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "4 x 4" in printed
    assert "3 x 5" in printed
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["workload"]["H"], r["workload"]["W"]) for r in rows] == [(4, 4), (3, 5)]
    assert all(r["status"] == "ok" and r["workload"]["Ev"] == 16 for r in rows)
    assert rows[0]["saved_extra_bytes"] == 4 * 16 * 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "ten"], "--sizes must be like 97 or 128x256, got ten"),
        (["--sizes", "0"], "sizes must be at least 1"),
        (["--forms", "magic"], "--forms must be of fused, naive, sdpa, got magic"),
        (["--dtype", "int8"], "dtype must be of float32"),
    ],
)
def test_wrong_options_are_one_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--device", "cpu", *words]) == 2
    assert message in capsys.readouterr().err
