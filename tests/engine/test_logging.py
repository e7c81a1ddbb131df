# SPDX-License-Identifier: MIT
"""What a run prints, on a terminal and elsewhere."""

import io

import pytest
from rich.console import Console

from ocnet.engine.logging import ProgressLog

RECORD = {"step": 20, "loss": 1.23456, "lr": 0.00123, "images_per_s": 45.67}
SCORES = {"miou": 0.5, "flat_accuracy": 0.25}


def printed(terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=90, color_system=None)
    with ProgressLog("tiny [x]", 100, console=console) as log:
        log.line("starting")
        log.step(10)
        log.record(RECORD)
        log.record({**RECORD, **SCORES, "step": 30})
    return out.getvalue()


def test_elsewhere_each_record_is_one_plain_line() -> None:
    lines = printed(terminal=False).splitlines()
    assert lines[0] == "starting"
    assert lines[1].startswith(
        "tiny [x]  step  20/100  loss 1.2346  lr 1.23e-03  45.7 img/s  ETA 0:"
    )
    assert lines[2].endswith("mIoU 0.5000  flat_accuracy 0.2500")
    assert len(lines) == 3


def test_on_a_terminal_there_is_one_bar_and_lines_for_scores() -> None:
    text = printed(terminal=True)
    assert "\x1b[" in text or "\r" in text
    assert "tiny [x]  step  30/100  mIoU 0.5000" in text
    assert "tiny [x]" in text.splitlines()[-2]
    assert "30/100" in text.splitlines()[-2]
    assert "step  20/100" not in text


def test_a_continued_run_starts_its_bar_where_it_is() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    with ProgressLog("x", 100, first=60, console=console):
        pass
    assert "60/100" in out.getvalue()


def test_all_processes_but_one_are_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLog("x", 100, quiet=True) as log:
        log.line("starting")
        log.step(10)
        log.record({**RECORD, **SCORES})
    assert capsys.readouterr().out == ""
