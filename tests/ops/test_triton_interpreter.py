# SPDX-License-Identifier: MIT
"""Runs the cases of each op in a process of its own, with Triton's interpreter on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.triton
@pytest.mark.parametrize(
    "cases",
    [
        "triton_interpreter_cases.py",
        "triton_partition_cases.py",
        "triton_gather_cases.py",
        "triton_abn_cases.py",
        pytest.param("triton_abn_more_cases.py", marks=pytest.mark.slow),
    ],
)
def test_kernels_in_the_interpreter(cases: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / cases)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped" not in run.stdout, run.stdout
