# SPDX-License-Identifier: MIT
"""Reads what ``ptxas -v`` said of the kernels it compiled, and of what it did to them unasked."""

import re
from dataclasses import dataclass

REGISTERS = 65536  # of a multiprocessor, sm_80 to sm_90
MOST_REGISTERS = 255  # that an instruction can name
INFORMATION = {"C7519"}

_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
_TIME = re.compile(r"Compiling entry function '(\w+)'.*?Compile time = ([\d.]+) ms", re.DOTALL)
_ADVICE = re.compile(r"^ptxas[^\n]*\((C75\d\d)\)[^\n]*$|^[^\n]*ptxas warning[^\n]*$", re.MULTILINE)
_ENTRY = re.compile(r"\.entry (\w+)\([^{]*\)\s*((?:\.\w+ [\d, ]+\s*)*)\{")


@dataclass(frozen=True)
class Kernel:
    name: str
    arch: str
    stack: int
    spilled: int
    registers: int
    static_shared: int


def kernels_of(log: str) -> list[Kernel]:
    """Return a record for each kernel and architecture."""
    kernels = []
    for found in _KERNEL.finditer(log):
        shared = re.search(r"(\d+) bytes smem", found["rest"])
        kernels.append(
            Kernel(
                found["name"],
                found["arch"],
                int(found["stack"]),
                int(found["stores"]) + int(found["loads"]),
                int(found["registers"]),
                int(shared[1]) if shared else 0,
            )
        )
    return kernels


def spilling(kernels: list[Kernel]) -> list[Kernel]:
    return [kernel for kernel in kernels if kernel.spilled or kernel.stack]


def seconds_of(log: str, name: str) -> list[float]:
    """Return how long each kernel took to compile whose name contains this one."""
    return [float(found[2]) / 1000 for found in _TIME.finditer(log) if name in found[1]]


def complaints_of(log: str) -> list[str]:
    """Return the lines that tell of slow code instead of what was written.

    Among them: wgmma one after the other (C7510, C7512, C7514, C7515, C7520), waits put in by the
    compiler (C7517), setmaxnreg ignored (C7508).
    """
    return [found[0] for found in _ADVICE.finditer(log) if found[1] not in INFORMATION]


def register_limits(ptx: str) -> dict[str, int]:
    """Return how many registers the launch bounds of each kernel leave to a thread."""
    limits = {}
    for name, directives in _ENTRY.findall(ptx):
        bounds = dict(re.findall(r"\.(\w+) (\d+)", directives))
        threads = int(bounds.get("maxntid", 1024)) * int(bounds.get("minnctapersm", 1))
        limits[name] = min(REGISTERS // threads // 8 * 8, MOST_REGISTERS)
    return limits
