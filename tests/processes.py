# SPDX-License-Identifier: MIT
"""Programs that several processes run together."""

import subprocess
import sys
from pathlib import Path


def run_together(program: Path, ranks: int, arguments: tuple[str, ...], said: str) -> None:
    """Run ``program RANK *arguments`` once for each rank; each must succeed, and say a sentence."""
    workers = [
        subprocess.Popen(
            [sys.executable, str(program), str(rank), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        texts = [worker.communicate(timeout=300)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for worker, text in zip(workers, texts, strict=True):
        assert worker.returncode == 0, text
        assert said in text
