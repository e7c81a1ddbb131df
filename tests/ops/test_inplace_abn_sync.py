# SPDX-License-Identifier: MIT
"""In-place ABN over several processes: results and gradients are those of one, on all maps together."""

import sys
from pathlib import Path

import pytest

from tests.processes import run_together

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo as used here is for Unix")


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_compute_what_one_does(ranks: int, tmp_path: Path) -> None:
    arguments = (str(ranks), str(tmp_path / "store"))
    run_together(HERE / "abn_sync_program.py", ranks, arguments, "checked 26 calls")


def test_ddp_and_fsdp2_compute_what_one_does(tmp_path: Path) -> None:
    arguments = (str(tmp_path / "store"),)
    run_together(HERE / "abn_parallel_program.py", 2, arguments, "checked 8 nets")
