# SPDX-License-Identifier: MIT
"""What can be built here, and how: toolchain discovery and the ninja file of the native libraries.

Used by ``setup.py``, and where tests build. Knows nothing of Python headers: the libraries contain no Python.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "native"
RESOURCES = WORK / "cuda_resources.txt"
CHOICES = ("auto", "none", "cpu", "cuda")
STABLE_API = "0x020a000000000000"  # the oldest torch whose stable ABI has all we use: 2.10
DEFAULT_ARCHS = "80;90a;90+PTX"

CPU_SOURCES = ["csrc/registration.cpp", *sorted(str(p) for p in Path("csrc/cpu").glob("*.cpp"))]
CUDA_SOURCES = ["csrc/registration.cpp", *sorted(str(p) for p in Path("csrc").glob("*.cu"))]


class BuildError(Exception):
    """A build that was asked for and cannot be had; the text fits one screen."""


@dataclass(frozen=True)
class Toolchain:
    """What was found; ``None`` for what was not."""

    cxx: str | None
    nvcc: str | None
    torch: Path | None


def find_torch() -> Path | None:
    """Return torch's package folder.

    Under build isolation the environment being installed into is hidden from ``sys.path``, but
    ``sysconfig`` still names its site-packages.
    """
    spec = importlib.util.find_spec("torch")
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    folders += [Path(sysconfig.get_path(kind)) / "torch" for kind in ("purelib", "platlib")]
    for folder in folders:
        if (folder / "include" / "torch" / "csrc" / "stable" / "library.h").is_file():
            return folder
    return None


def find_toolchain() -> Toolchain:
    """Look for a C++ compiler, nvcc and torch's headers."""
    names = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    cxx = next((path for name in names if name and (path := shutil.which(name))), None)
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    nvcc = shutil.which("nvcc") or next(
        (path for home in homes if home and (path := shutil.which("nvcc", path=f"{home}/bin"))),
        None,
    )
    return Toolchain(cxx, nvcc, find_torch())


def requested() -> str:
    """Return ``OCNET_BUILD``."""
    choice = os.environ.get("OCNET_BUILD", "auto")
    if choice not in CHOICES:
        raise BuildError(f"setup: OCNET_BUILD must be one of {', '.join(CHOICES)}, got {choice!r}")
    return choice


def halves_to_build(choice: str, tools: Toolchain) -> tuple[list[str], list[str]]:
    """Return the libraries to build, and a line for each that is left out."""
    if choice == "none":
        return [], ["OCNET_BUILD=none: no native library is built"]
    missing: list[str] = []
    if platform.system() == "Windows":
        missing.append("native libraries are not built on Windows")
    if tools.cxx is None:
        missing.append("no C++ compiler (g++ or clang++; set CXX to name another)")
    wanted = ["cpu", "cuda"] if choice in ("auto", "cuda") else ["cpu"]
    if missing:
        if choice != "auto":
            raise BuildError(f"setup: OCNET_BUILD={choice} must find its tools, got: {missing[0]}")
        return [], missing
    if "cuda" in wanted and tools.nvcc is None:
        reason = "no nvcc (PATH, CUDA_HOME): the CUDA library is not built"
        if choice == "cuda":
            raise BuildError(f"setup: OCNET_BUILD=cuda must find its tools, got: {reason}")
        return ["cpu"], [reason]
    return wanted, []


def _archs() -> list[str]:
    return os.environ.get("OCNET_CUDA_ARCHS", DEFAULT_ARCHS).split(";")


def _hopper_flag() -> str:
    """Tell the registration whether the kernels for Hopper's own instructions have code."""
    return " -DOCNET_HAS_HOPPER" if "90a" in _archs() else ""


def _arch_flags() -> str:
    flags = []
    for arch in _archs():
        number = arch.removesuffix("+PTX")
        code = f"compute_{number}" if arch.endswith("+PTX") else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code={code}")
    return " ".join(flags)


def _ninja_text(half: str, tools: Toolchain, target: Path) -> str:
    torch = tools.torch
    common = (
        f"-I{ROOT / 'csrc'} -I{torch}/include -DTORCH_TARGET_VERSION={STABLE_API} -O3 -std=c++17"
    )
    cuda = f" -DUSE_CUDA{_hopper_flag()}" if half == "cuda" else ""
    sources = CUDA_SOURCES if half == "cuda" else CPU_SOURCES
    # Warnings inside torch's own headers are not ours to mend: they come in as system headers.
    host = common.replace(f"-I{torch}", f"-isystem {torch}")
    lines = [
        "ninja_required_version = 1.5",
        "rule cxx",
        "  description = C++ $in",
        f"  command = {tools.cxx} -MMD -MF $out.d {host}{cuda} $extra -Wall -Wextra -fPIC"
        " -fvisibility=hidden -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule nvcc",
        "  description = CUDA $in",
        # The report of registers, spills and shared memory goes to a file that tests read.
        f"  command = {tools.nvcc} -MMD -MF $out.d {common} -DUSE_CUDA {_arch_flags()} -lineinfo"
        " --expt-relaxed-constexpr -Xptxas -v -Xcompiler -fPIC,-fvisibility=hidden"
        " -c $in -o $out > $out.log 2>&1 || (cat $out.log; exit 1)",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        "  description = link $out",
        f"  command = {tools.cxx} -shared $in -o $out -L{torch}/lib $libs",
    ]
    objects = []
    for source in sources:
        rule = "nvcc" if source.endswith(".cu") else "cxx"
        obj = f"{half}/{source.replace('/', '_')}.o"
        objects.append(obj)
        lines.append(f"build {obj}: {rule} {ROOT / source}")
        if half == "cuda" and rule == "cxx":
            lines.append(f"  extra = -isystem {_cuda_include(tools)}")
    libs = "-Wl,--no-as-needed -ltorch_cpu"
    implicit = ""
    if half == "cuda":
        # A stand-in with the soname of torch's CUDA library: it puts that name into DT_NEEDED, so
        # the loader binds our symbols to the real one, and a CPU build of torch can still link us.
        stub = "cuda/stub/libtorch_cuda.so"
        lines += [
            "rule stub",
            f"  command = {tools.cxx} -shared -fPIC -Wl,-soname,libtorch_cuda.so $in -o $out",
            f"build {stub}: stub {ROOT / 'csrc' / 'stub' / 'torch_cuda.cpp'}",
        ]
        implicit = f" | {stub}"
        cudart = _cuda_include(tools).parent
        folders = " ".join(
            f"-L{cudart / name}" for name in ("lib64", "lib") if (cudart / name).is_dir()
        )
        libs += f" -Lcuda/stub -ltorch_cuda {folders} -lcudart_static -lpthread -ldl -lrt"
    lines += [f"build {target}: link {' '.join(objects)}{implicit}", f"  libs = {libs}"]
    return "\n".join([*lines, f"default {target}", ""])


def _cuda_include(tools: Toolchain) -> Path:
    """Return the toolkit's include folder, as nvcc itself reports it."""
    dry = subprocess.run(
        [str(tools.nvcc), "--dryrun", "-c", "-x", "cu", os.devnull],
        capture_output=True,
        text=True,
        check=False,
    )
    for line in dry.stderr.splitlines():
        if line.startswith("#$ TOP="):
            return (Path(line.removeprefix("#$ TOP=").strip()) / "include").resolve()
    return Path(str(tools.nvcc)).resolve().parent.parent / "include"


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until nobody else builds in a folder, which is made if need be.

    Ninja does not: of two at once, one reads lists of headers that the other has taken away, and from
    then on no change of a header compiles anything again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed
        yield


def build(half: str, tools: Toolchain, target: Path) -> None:
    """Build one library into ``target`` (absolute), reusing what is up to date.

    Raises:
        BuildError: It failed; the text holds the compiler's last lines and what still works.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    plan = WORK / f"{half}.ninja"
    jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
    with one_at_a_time(WORK):
        plan.write_text(_ninja_text(half, tools, target))
        done = subprocess.run(
            [sys.executable, "-m", "ninja", "-C", str(WORK), "-f", plan.name, *jobs],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-25:])
        raise BuildError(
            f"setup: the {half.upper()} library did not compile ({tools.cxx}, nvcc: {tools.nvcc}):\n"
            f"{tail}\n"
            f"What still works: OCNET_BUILD=none (Python and Triton only)"
            + (", OCNET_BUILD=cpu (no CUDA library)." if half == "cuda" else ".")
        )
    print(done.stdout, end="")
    if half == "cuda":
        logs = sorted((WORK / "cuda").glob("*.cu.o.log"))
        RESOURCES.write_text("".join(log.read_text() for log in logs))
