# SPDX-License-Identifier: MIT
"""Meters for one call: bytes kept for backward, peak memory, time, and what the device has to give."""

import ctypes
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_FLUSH_BYTES = 256 << 20  # several times the L2 cache of any GPU up to now


class Saved(NamedTuple):
    """Bytes kept for backward.

    Attributes:
        total: All of them.
        beyond_inputs: Those that are not an input's storage.
        own: Those that are neither a result's storage nor that of a tensor which stays anyway.
    """

    total: int
    beyond_inputs: int
    own: int


def saved_bytes(
    call: Callable[[], Tensor | Sequence[Tensor] | None],
    inputs: Sequence[Tensor] = (),
    staying: Sequence[Tensor] = (),
) -> Saved:
    """Count the bytes that autograd keeps alive for a backward pass.

    Every storage counts once, in whole, however many saved tensors view it. Nothing depends on the
    device or on the allocator, so a CPU run tells what a GPU run will keep.

    Args:
        call: Runs the forward pass with gradients on, and returns its results.
        inputs: Tensors that the call is given.
        staying: Those of them that others keep in any case.

    Returns:
        The counts.
    """
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Holding the storage keeps its address from being reused by a later one.
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = call()
    results = (kept,) if isinstance(kept, Tensor) else kept or ()

    def beyond(*tensors: Tensor) -> int:
        known = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        return sum(s.nbytes() for address, s in storages.items() if address not in known)

    return Saved(beyond(), beyond(*inputs), beyond(*results, *staying))


class PeakMeter:
    """The most memory in use since the last :meth:`restart`, less what was in use then.

    On CUDA: bytes handed out by torch's allocator. On the CPU: resident memory of the whole process,
    as the operating system counts it. Linux lets a process forget its old peak; elsewhere the peak of
    the process's life is all there is, so measure in a fresh process there.

    Args:
        device: Where the measured call runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._base = self._now() if device.type == "cuda" else _resident_bytes()

    def restart(self) -> None:
        """Forget the old peak, if the system can, and take what is in use now as the base."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._base = self._now()
        elif peak_is_resettable():
            _return_free_memory()
            _CLEAR_REFS.write_text("5")
            self._base = _resident_bytes()

    def peak(self) -> int | None:
        """Return the peak above the base in bytes; ``None`` where the system does not tell."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return max(0, torch.cuda.max_memory_allocated(self._device) - self._base)
        highest = _peak_resident_bytes()
        return None if highest is None else max(0, highest - self._base)

    def _now(self) -> int:
        return torch.cuda.memory_allocated(self._device)


_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def peak_is_resettable() -> bool:
    """Tell whether this process can forget its peak of resident memory (Linux, mostly)."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _status_bytes(field: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _peak_resident_bytes() -> int | None:
    peak = _status_bytes("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _resident_bytes() -> int:
    now = _status_bytes("VmRSS")
    if now is None:
        now = _peak_resident_bytes()
    return 0 if now is None else now


def _return_free_memory() -> None:
    """Let glibc hand back what it holds, or the next call would run in memory counted as in use."""
    give_back = _of_glibc("malloc_trim")
    if give_back is not None:
        give_back(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """Return a function of glibc; ``None`` with another C library."""
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
    return function


@contextmanager
def _kept_memory() -> Iterator[None]:
    """Let glibc keep what is freed, as torch's allocator does on GPUs.

    It may give the pages of a call's results back before the next call, which then waits for new ones
    for longer than many a call takes, or it may not: that hangs on what else is on the heap.
    """
    trim_threshold, mmap_max = -1, -4  # glibc's numbers of the settings
    set_option = _of_glibc("mallopt")
    if set_option is None:
        yield
        return
    set_option(trim_threshold, 2**31 - 1)
    set_option(mmap_max, 0)
    try:
        yield
    finally:
        # What they are by default.
        set_option(trim_threshold, 128 * 1024)
        set_option(mmap_max, 65536)


@dataclass(frozen=True)
class Timing:
    """Percentiles of repeated calls, in milliseconds."""

    p20: float
    p50: float
    p80: float
    repeats: int


def time_call(
    call: Callable[[object], object],
    device: torch.device,
    *,
    prepare: Callable[[], object] = lambda: None,
    budget_s: float = 1.0,
    least: int = 3,
    most: int = 200,
) -> Timing:
    """Time a call that has been warmed up.

    On CUDA by events around each call, with the L2 cache overwritten before it and the device waited
    for only once at the end; on the CPU by the wall clock, caches as they are, in memory that was
    taken before.

    Args:
        call: What to time; gets what ``prepare`` returned.
        device: Where it runs.
        prepare: Runs untimed before each call.
        budget_s: Stop repeating after this many seconds.
        least: Fewest repeats, whatever they cost.
        most: Most repeats.

    Returns:
        The 20th, 50th and 80th percentiles.
    """
    timer = _time_cuda if device.type == "cuda" else _time_cpu
    samples = timer(call, prepare, device, budget_s, least, most)
    if len(samples) == 1:
        return Timing(samples[0], samples[0], samples[0], 1)
    cuts = statistics.quantiles(samples, n=10, method="inclusive")
    return Timing(cuts[1], statistics.median(samples), cuts[7], len(samples))


def _time_cpu(
    call: Callable[[object], object],
    prepare: Callable[[], object],
    device: torch.device,
    budget_s: float,
    least: int,
    most: int,
) -> list[float]:
    with _kept_memory():
        # The first take the memory that the others then find.
        _repeat(call, prepare, budget_s / 10, 1, most)
        return _repeat(call, prepare, budget_s, least, most)


def _repeat(
    call: Callable[[object], object],
    prepare: Callable[[], object],
    budget_s: float,
    least: int,
    most: int,
) -> list[float]:
    samples: list[float] = []
    begin = time.perf_counter()
    while len(samples) < most:
        if len(samples) >= least and time.perf_counter() - begin > budget_s:
            break
        state = prepare()
        start = time.perf_counter()
        call(state)
        samples.append((time.perf_counter() - start) * 1e3)
    return samples


def _time_cuda(
    call: Callable[[object], object],
    prepare: Callable[[], object],
    device: torch.device,
    budget_s: float,
    least: int,
    most: int,
) -> list[float]:
    with torch.cuda.device(device):
        start, end = _event(), _event()
        state = prepare()
        start.record()
        call(state)
        end.record()
        end.synchronize()
        once_s = max(start.elapsed_time(end), 1e-3) / 1e3
        repeats = int(min(max(budget_s / once_s, least), most))
        flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)
        pairs = []
        for _ in range(repeats):
            state = prepare()
            flush.zero_()
            begin, finish = _event(), _event()
            begin.record()
            call(state)
            finish.record()
            pairs.append((begin, finish))
        torch.cuda.synchronize(device)
    return [begin.elapsed_time(finish) for begin, finish in pairs]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def available_bytes(device: torch.device) -> int | None:
    """Return how many bytes a call on ``device`` may still take; ``None`` where unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    limits = [limit for limit in (_system_available(), _group_available()) if limit is not None]
    return min(limits) if limits else None


def _system_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith("MemAvailable:")]
    return int(found[0].split()[1]) * 1024 if found else None


def _group_available(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return what a container's memory limit leaves, for version 2 and version 1 control groups."""
    pairs = (
        (root / "memory.max", root / "memory.current"),
        (root / "memory/memory.limit_in_bytes", root / "memory/memory.usage_in_bytes"),
    )
    for limit, used in pairs:
        try:
            return max(0, int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):  # no such file, or the word "max": no limit
            continue
    return None


def device_name(device: torch.device) -> str:
    """Return the model of the GPU or of the processor, with the threads torch uses there."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'' if threads == 1 else 's'}"
