# SPDX-License-Identifier: MIT
"""Builds the Python module ``ocnet_emulator`` on first use: the emulator, and the kernels in it.

Ninja recompiles what changed, flags included; another compiler, Python or torch gets a folder of its
own. ``python -m tests.emulator.build`` builds without loading and prints the path.
"""

import functools
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import torch

from tools.native_build import STABLE_API, find_torch, one_at_a_time

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / "build" / "emulator"
MODULE = "ocnet_emulator"
OLDEST_COMPILER = 11  # the first that can leave function entries and exits alone

# Whatever includes what kernels are made of: there, loads and stores become calls of the emulator.
# The linker keeps one copy of an inline function, so no plain source may hold one of a kernel's.
# So are the sources of the CUDA library, whose ops then take CPU tensors.
INSTRUMENTED = ["abn_bindings", "common_bindings", "hopper_bindings", "probes"]
OPS = sorted((ROOT / "csrc").glob("*.cu"))
# Linked first, so that the emulator gets copies of the standard library's that do not call it back.
PLAIN = [
    *("addresses", "async", "barriers", "bindings", "hooks", "mbarrier", "memory"),
    *("probe_bindings", "report", "scheduler", "wgmma"),
]
REGISTRATION = ROOT / "csrc" / "registration.cpp"

# Fibers switch stacks by jumps, which fortified libraries refuse.
# Line numbers are all that reports need; frame pointers and real calls lead from an emulated form to
# the line of the kernel that used it.
FLAGS = [
    *("-std=c++17", "-O2", "-g1", "-fPIC", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra"),
    *("-fno-omit-frame-pointer", "-fno-optimize-sibling-calls", "-Wno-frame-address"),
    *("-DOCNET_EMULATOR", "-DOCNET_HAS_HOPPER", f"-DTORCH_TARGET_VERSION={STABLE_API}"),
]
# The calls are resolved by the emulator itself, so linking takes no sanitizer.
INSTRUMENT = ["-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"]


class UnavailableError(Exception):
    """What is missing here to build the emulator, in words."""


class BuildError(Exception):
    """The emulator does not compile; the text holds the last lines of the compiler."""


def find_compiler() -> tuple[str, str]:
    """Return a GCC that knows the flags, and its predefined macros, which tell its version."""
    for name in filter(None, (os.environ.get("CXX"), "g++")):
        path = shutil.which(name)
        if path is None:
            continue
        command = [path, "-dM", "-E", "-x", "c++", os.devnull]
        macros = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        version = re.search(r"define __GNUC__ (\d+)", macros)
        if version and int(version[1]) >= OLDEST_COMPILER and "__clang__" not in macros:
            return path, macros
    raise UnavailableError(f"the emulator needs g++ {OLDEST_COMPILER} or later")


def _include_flags(torch_folder: Path) -> list[str]:
    ours = [f"-I{ROOT / 'csrc'}", f"-I{HERE}"]
    pybind11 = importlib.import_module("pybind11").get_include()
    # As system headers: warnings inside them are not ours to mend.
    others = [pybind11, sysconfig.get_path("include"), str(torch_folder / "include")]
    return ours + [flag for folder in others for flag in ("-isystem", folder)]


def _ninja_text(compiler: str, torch_folder: Path) -> str:
    def command(*parts: str) -> str:
        return shlex.join(parts).replace("$", "$$")

    def escaped(path: Path) -> str:
        return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    compile_ = command(compiler, *FLAGS, *_include_flags(torch_folder))
    libraries = command(f"-L{torch_folder / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu", "-ldl")
    lines = []
    for rule, extra in (("plain", ""), ("instrumented", command(*INSTRUMENT))):
        lines += [
            f"rule {rule}",
            f"  description = {rule} $in",
            f"  command = {compile_} {extra} -MMD -MF $out.d -x c++ -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
        ]
    lines += [
        "rule link",
        "  description = link $out",
        # A process that has the last build loaded keeps it.
        f"  command = {command(compiler)} -shared $in -o $out.new {libraries} && mv $out.new $out",
    ]
    sources = [("plain", REGISTRATION)]
    sources += [("plain", HERE / f"{name}.cpp") for name in PLAIN]
    sources += [("instrumented", HERE / f"{name}.cpp") for name in INSTRUMENTED]
    sources += [("instrumented", path) for path in OPS]
    lines += [f"build {path.stem}.o: {rule} {escaped(path)}" for rule, path in sources]
    objects = " ".join(f"{path.stem}.o" for _, path in sources)
    return "\n".join([*lines, f"build {MODULE}.so: link {objects}", ""])


def build() -> Path:
    """Bring the module up to date and return its path.

    Raises:
        UnavailableError: A tool is missing.
        BuildError: A source does not compile.
    """
    if sys.platform != "linux":
        raise UnavailableError("the emulator runs on Linux only")
    for package in ("pybind11", "ninja"):
        if importlib.util.find_spec(package) is None:
            raise UnavailableError(f"the emulator needs the package {package} to be built")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise UnavailableError("the emulator needs Python's headers (Python.h) to be built")
    torch_folder = find_torch()
    if torch_folder is None:
        raise UnavailableError("the emulator needs torch's headers to be built")
    compiler, macros = find_compiler()
    plan = _ninja_text(compiler, torch_folder)
    versions = "\n".join((compiler, macros, sys.version, str(torch_folder), torch.__version__))
    folder = WORK / hashlib.sha256(versions.encode()).hexdigest()[:16]
    with one_at_a_time(folder):
        (folder / "build.ninja").write_text(plan)
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        ninja = [sys.executable, "-m", "ninja", "-C", str(folder), *jobs]
        done = subprocess.run(ninja, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
        raise BuildError(f"the emulator does not compile ({compiler}):\n{tail}")
    return folder / f"{MODULE}.so"


@functools.cache
def load_emulator() -> ModuleType:
    """Return the module, built if need be; its ops are ``torch.ops.ocnet_emulated``.

    Raises:
        UnavailableError: A tool is missing; the text says which.
        BuildError: A source does not compile.
    """
    spec = importlib.util.spec_from_file_location(MODULE, build())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    print(build())
