# SPDX-License-Identifier: MIT
"""What this machine and this install are: for ``ocnet doctor``, bug reports and benchmark rows."""

import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path

import torch

from ocnet._version import __version__
from ocnet.engine.meters import device_name
from ocnet.ops import Explanation
from ocnet.ops._extension import Library, load
from ocnet.ops.oc_attention.autograd import BACKENDS
from ocnet.ops.oc_attention.problem import DTYPES, Problem

HALVES = ("cpu", "cuda")


def versions() -> dict[str, str | None]:
    """Return the versions that a result depends on; ``None`` for what is not there."""
    return {
        "ocnet": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "triton": _installed("triton"),
        "numpy": _installed("numpy"),
        "opencv": _installed("opencv-python-headless"),
        "system": f"{platform.system()} {platform.machine()}",
    }


def source_commit() -> str | None:
    """Return the commit of the checkout that this package runs from, ``None`` where it is no checkout.

    ``-changed`` is put behind it where tracked files differ, but for rows of earlier benchmarks, which change
    nothing that is measured.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD")
    if commit is None:
        return None
    code = ("--untracked-files=no", "--", ".", ":!benchmarks/results")
    changed = _output("git", "-C", str(root), "status", "--porcelain", *code)
    return f"{commit}-changed" if changed else commit


def devices() -> dict[str, str]:
    """Return the devices by name: the CPU, and every CUDA device with capability and memory."""
    found = {"cpu": device_name(torch.device("cpu"))}
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = (
            f"{facts.name}, compute capability {facts.major}.{facts.minor}, "
            f"{facts.total_memory / 2**30:.0f} GiB"
        )
    return found


def libraries() -> dict[str, Library]:
    """Load both native libraries and return what came of it."""
    return {half: load(half) for half in HALVES}


def attention_backends() -> dict[str, Explanation]:
    """Explain, for each device and dtype, which back end of ``oc_attention`` a call takes."""
    kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return {
        f"{kind} {str(dtype).removeprefix('torch.')}": BACKENDS.explain(
            Problem(
                torch.device(kind), dtype, N=1, L=97 * 97, S=97 * 97, E=256, Ev=256, shared=True
            )
        )
        for kind in kinds
        for dtype in DTYPES
    }


def tools() -> dict[str, str | None]:
    """Return the compilers that a build here would find."""
    return {name: shutil.which(name) for name in ("g++", "clang++", "nvcc")}


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or None


def _output(*command: str) -> str | None:
    """Return the first line a program prints, or ``None`` if it cannot be run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0]
