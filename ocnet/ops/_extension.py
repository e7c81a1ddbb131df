# SPDX-License-Identifier: MIT
"""Loads the native libraries, once and only when a back end asks; keeps the reason when one is absent."""

import functools
from pathlib import Path
from typing import NamedTuple

import torch

HOW_TO_BUILD = "build it with `OCNET_BUILD={half} pip install -e . -v`"


class Library(NamedTuple):
    """A native library: its file, and the reason why it is not loaded (``None`` when it is)."""

    path: Path | None
    problem: str | None


def _find(half: str) -> Path | None:
    folder = Path(__file__).resolve().parent.parent
    found = sorted(folder.glob(f"_C_{half}.*so")) + sorted(folder.glob(f"_C_{half}*.pyd"))
    return found[0] if found else None


@functools.cache
def load(half: str) -> Library:
    """Load the ``cpu`` or the ``cuda`` library.

    The CUDA library is left alone unless torch itself has CUDA: it needs torch's CUDA half to
    resolve its symbols.
    """
    path = _find(half)
    if path is None:
        return Library(None, f"its library is not built; {HOW_TO_BUILD.format(half=half)}")
    if half == "cuda" and torch.version.cuda is None:
        return Library(path, f"this torch ({torch.__version__}) has no CUDA")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return Library(path, f"{path.name} does not load: {error}")
    return Library(path, None)
