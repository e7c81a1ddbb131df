# SPDX-License-Identifier: MIT
"""Tensors that two processes share: results and gradients are those of one process."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("sharding_program.py")


@pytest.mark.skipif(sys.platform == "win32", reason="gloo as used here is for Unix")
def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        texts = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for worker, text in zip(workers, texts, strict=True):
        assert worker.returncode == 0, text
        assert "checked 17 calls" in text
