# SPDX-License-Identifier: MIT
"""Programs that several processes run together."""

import subprocess
import sys
from pathlib import Path

# Gloo's threads drop the tensors of a collective a while after it is done, and abort where that is
# while the interpreter ends: a program that has run to its end leaves without that end.
_RUN = """
import os, runpy, sys
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
sys.stdout.flush()
os._exit(0)
"""


def run_together(program: Path, ranks: int, arguments: tuple[str, ...], said: str) -> None:
    """Run ``program RANK *arguments`` once for each rank; each must succeed, and say a sentence."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _RUN, str(program), str(rank), *arguments],
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
