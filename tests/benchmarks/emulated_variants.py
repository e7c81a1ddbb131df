# SPDX-License-Identifier: MIT
"""The kernels of benchmarks/hopper in the emulator, in the place of a GPU."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.hopper.library import HERE as HOPPER
from tests.emulator import build
from tests.emulator.device import Library

SOURCE = Path(__file__).resolve().parent / "emulated_variants.cpp"
# What needs neither torch nor Python.
MACHINE = [name for name in build.PLAIN if "bindings" not in name]


def compile_variants(folder: Path, *definitions: str) -> Path:
    """Return a library with the C interface of one for a GPU.

    Args:
        folder: Where it is built.
        definitions: ``OCNET_BACKWARD`` for the variants of the backward kernels.

    Raises:
        UnavailableError: A tool is missing.
        BuildError: A source does not compile.
    """
    objects = [build.build().parent / f"{name}.o" for name in MACHINE]
    compiler = build.find_compiler()[0]
    target, library = folder / "variants.o", folder / "variants.so"
    includes = [f"-I{path}" for path in (build.ROOT / "csrc", build.HERE, HOPPER)]
    defined = [f"-D{name}" for name in definitions]
    _run(compiler, *build.FLAGS, *build.INSTRUMENT, *defined, *includes, "-c", SOURCE, "-o", target)
    _run(compiler, "-shared", *objects, target, "-ldl", "-o", library)
    return library


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise build.BuildError("\n".join(done.stderr.splitlines()[-40:]))


class Emulated:
    """A target whose kernels run here, in this process."""

    def __init__(self, path: Path) -> None:
        self._library = Library(path)

    def run_probe(
        self, name: str, buffers: Sequence[np.ndarray], arguments: Sequence[int] = ()
    ) -> None:
        self._library.run(name, buffers, arguments)
