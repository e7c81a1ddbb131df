# SPDX-License-Identifier: MIT
"""Tensors that two processes share: results and gradients are those of one process."""

import sys
from pathlib import Path

import pytest

from tests.processes import run_together

PROGRAM = Path(__file__).with_name("sharding_program.py")


@pytest.mark.skipif(sys.platform == "win32", reason="gloo as used here is for Unix")
def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    run_together(PROGRAM, 2, (str(tmp_path / "store"),), "checked 17 calls")
