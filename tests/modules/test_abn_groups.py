# SPDX-License-Identifier: MIT
"""Synchronised layers over groups that change from step to step."""

import sys
from pathlib import Path

import pytest

from tests.processes import run_together


@pytest.mark.skipif(sys.platform == "win32", reason="gloo as used here is for Unix")
def test_three_processes_and_their_groups(tmp_path: Path) -> None:
    program = Path(__file__).with_name("abn_groups_program.py")
    run_together(program, 3, (str(tmp_path / "store"),), "checked 6 groups")
