# SPDX-License-Identifier: MIT
"""Reads the machine code of the built kernels, by the cuobjdump that Triton brings along."""

import importlib.util
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

# An instruction behind its address, and what may stand before it: @P0, @!UP1.
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]+)([^;]*);")
_REGISTER = re.compile(r"\bR(\d+)\b")


@dataclass(frozen=True)
class Code:
    """A kernel: names of its instructions in their order, and the highest register that they name."""

    name: str
    instructions: tuple[str, ...]
    highest_register: int

    def count(self, *prefixes: str) -> int:
        return len(self.places(*prefixes))

    def places(self, *prefixes: str) -> list[int]:
        return [i for i, name in enumerate(self.instructions) if name.startswith(prefixes)]


def find_cuobjdump() -> Path | None:
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return path if path.is_file() else None


def disassemble(cuobjdump: Path, library: Path, cubin: str, folder: Path) -> list[Code]:
    """Return the kernels of one part of a library, ``<source>.<architecture>.cubin``."""

    def run(*arguments: str | Path) -> str:
        command = [str(argument) for argument in (cuobjdump, *arguments)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout

    run("-xelf", cubin, library.resolve())
    return kernels_in(run("-sass", cubin))


def kernels_in(dump: str) -> list[Code]:
    kernels = []
    for text in dump.split("Function : ")[1:]:
        found = _INSTRUCTION.findall(text)
        registers = [int(n) for _, operands in found for n in _REGISTER.findall(operands)]
        names = tuple(name for name, _ in found)
        kernels.append(Code(text.split(maxsplit=1)[0], names, max(registers, default=-1)))
    return kernels
