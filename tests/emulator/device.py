# SPDX-License-Identifier: MIT
"""Probes on a GPU: a library of them, built by nvcc on first use, and a process that runs it.

A library needs neither torch nor Python. A probe that faults or hangs takes its process with it, not
the tests.
"""

import ctypes
import hashlib
import multiprocessing
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from tools.native_build import find_toolchain, one_at_a_time

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ARCHITECTURE = "90a"
CAPABILITY = "9.0"  # what runs code for 90a
SECONDS = 60  # a probe takes milliseconds; the first call also makes the CUDA context

FLAGS = [
    *("-std=c++17", "-O3", "-lineinfo", "--expt-relaxed-constexpr", "-Xptxas", "-v"),
    *("-Xcompiler", "-fPIC,-fvisibility=hidden", f"-I{ROOT / 'csrc'}", f"-I{HERE}"),
    f"-gencode=arch=compute_{ARCHITECTURE},code=sm_{ARCHITECTURE}",
]


@dataclass(frozen=True)
class Source:
    """A source of probes (probe_library.cuh), and the folders of what it includes."""

    path: Path
    folders: tuple[Path, ...]

    @property
    def work(self) -> Path:
        """Where it is built."""
        return ROOT / "build" / self.path.stem


PROBES = Source(HERE / "probes.cu", (ROOT / "csrc" / "common", HERE))


class UnavailableError(Exception):
    """No probe can run on a GPU here; the text says why."""


class UnsupportedError(UnavailableError):
    """There is a GPU, of another kind than the probes are built for."""


class ProbeError(Exception):
    """What CUDA said of a probe, or that it did not end."""


def find_nvcc() -> str:
    nvcc = find_toolchain().nvcc
    if nvcc is None:
        raise UnavailableError("no nvcc (PATH, CUDA_HOME): the probes for a GPU are not built")
    return nvcc


def _digest(nvcc: str, source: Source) -> str:
    version = subprocess.run([nvcc, "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(version + "\n".join(FLAGS).encode())
    for path in sorted(path for folder in source.folders for path in folder.rglob("*")):
        if path.suffix in (".h", ".cuh", ".cu") and not path.name.startswith("fault_"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def build(source: Source = PROBES) -> tuple[Path, Path]:
    """Return the library and what ptxas said of its kernels, both built if they are not there.

    The PTX of the kernels lies beside them.

    Raises:
        UnavailableError: There is no nvcc.
        subprocess.CalledProcessError: The probes do not compile; its text holds the last lines.
    """
    nvcc = find_nvcc()
    folder = source.work / _digest(nvcc, source)
    library, log = folder / f"{source.path.stem}.so", folder / "ptxas.txt"
    with one_at_a_time(source.work):
        if not library.is_file():
            for old in source.work.glob("*/"):
                shutil.rmtree(old)
            _compile(source, library, log)
    return library, log


def _compile(source: Source, library: Path, log: Path) -> None:
    """Fill the folder of the library, that last: where it is, all is."""
    with tempfile.TemporaryDirectory(dir=source.work) as name:
        scratch = Path(name)
        output = ["-shared", "-cudart", "static", "-o", scratch / library.name]
        output += ["--keep", "--keep-dir", scratch]
        compile_with_nvcc([source.path, *output], scratch / log.name)
        library.parent.mkdir()
        for path in (log, library.with_suffix(".ptx"), library):
            os.replace(scratch / path.name, path)


def compile_with_nvcc(arguments: Sequence[str | Path], log: Path) -> None:
    command = [find_nvcc(), *FLAGS, *map(str, arguments)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    log.write_text(done.stdout)
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-25:])
        raise subprocess.CalledProcessError(done.returncode, f"{' '.join(command)}\n{tail}")


class Library:
    """The C interface of probe_library.cuh. Errors come as text."""

    def __init__(self, path: Path) -> None:
        loaded = ctypes.CDLL(str(path))
        self._run = loaded.ocnet_run_probe
        self._describe = loaded.ocnet_describe_device
        self._run.restype = self._describe.restype = ctypes.c_char_p

    def describe(self) -> str:
        text = ctypes.create_string_buffer(256)
        self._check(self._describe(text, ctypes.c_int64(len(text))))
        return text.value.decode()

    def run(self, name: str, buffers: Sequence[np.ndarray], arguments: Sequence[int]) -> None:
        count = len(buffers)
        addresses = (ctypes.c_void_p * count)(*(buffer.ctypes.data for buffer in buffers))
        sizes = (ctypes.c_int64 * count)(*(buffer.nbytes for buffer in buffers))
        writable = (ctypes.c_int32 * count)(*(buffer.flags.writeable for buffer in buffers))
        numbers = (ctypes.c_int64 * len(arguments))(*arguments)
        self._check(self._run(name.encode(), count, addresses, sizes, writable, numbers))

    def _check(self, words: bytes | None) -> None:
        if words is not None:
            raise ProbeError(words.decode())


def _serve(connection: Connection, path: Path) -> None:
    """Answer calls of a method of the library, with the buffers as they are afterwards."""
    library = Library(path)
    while True:
        method, buffers, writable, *rest = connection.recv()
        for buffer, flag in zip(buffers, writable, strict=True):
            buffer.flags.writeable = flag
        try:
            if method == "describe":
                connection.send((None, library.describe()))
            else:
                library.run(rest[0], buffers, rest[1])
                connection.send((None, buffers))
        except ProbeError as error:
            connection.send((str(error), None))


class Device:
    """The first GPU, as a target of trials."""

    is_emulator = False

    def __init__(self, library: Path | None = None, seconds: float = SECONDS) -> None:
        self._library = library or build()[0]
        self.seconds = seconds
        self._process: multiprocessing.process.BaseProcess | None = None
        try:
            self.description = self._call("describe", [])
        except ProbeError as error:
            raise UnavailableError(str(error)) from error
        if not self.description.endswith(f", {CAPABILITY}"):
            raise UnsupportedError(
                f"the probes are built for compute capability {CAPABILITY}, "
                f"and this is {self.description}"
            )

    def run_probe(
        self, name: str, buffers: Sequence[np.ndarray], arguments: Sequence[int] = ()
    ) -> None:
        """Run a probe on copies of the buffers, and copy back those that are writeable."""
        after = self._call("run", buffers, name, [int(number) for number in arguments])
        for buffer, result in zip(buffers, after, strict=True):
            if buffer.flags.writeable:
                np.copyto(buffer, result)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None

    def _call(self, method: str, buffers: Sequence[np.ndarray], *rest):
        if self._process is None:
            self._start()
        writable = [buffer.flags.writeable for buffer in buffers]
        self._connection.send((method, list(buffers), writable, *rest))
        what = rest[0] if rest else method
        try:
            if not self._connection.poll(self.seconds):
                raise ProbeError(f"{what}: not done after {self.seconds} s")
            words, result = self._connection.recv()
        except (EOFError, ProbeError) as error:
            self.close()
            raise ProbeError(str(error) or f"{what}: the process of the probe died") from error
        if words is not None:
            self.close()  # CUDA does not recover from most errors of a kernel
            raise ProbeError(words)
        return result

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._library), daemon=True)
        self._process.start()
        theirs.close()
