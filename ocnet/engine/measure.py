# SPDX-License-Identifier: MIT
"""What a call costs on a device: fused, by the plain formula, and by torch's own kernels.

``measure`` takes one (form, workload, phase) in this process; ``run_jobs`` takes many, in fresh
processes where peak resident memory needs them. A call that does not fit is a result, not a crash.
"""

import importlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ocnet.engine.abn_workload import ABNWorkload
from ocnet.engine.gather_workload import GatherWorkload
from ocnet.engine.meters import (
    PeakMeter,
    Timing,
    available_bytes,
    peak_is_resettable,
    saved_bytes,
    time_call,
)
from ocnet.engine.partition_workload import PartitionWorkload
from ocnet.engine.workload import BACKWARD, FORWARD, PHASES, STEP, Call, Form, Workload

OK, OUT_OF_MEMORY, TOO_LARGE = "ok", "out of memory", "too large"
REFUSED, FAILED = "refused", "failed"

_HEADROOM = 0.9


_KINDS: dict[str | None, Callable[..., Call]] = {
    None: Workload,
    GatherWorkload.op: GatherWorkload,
    PartitionWorkload.op: PartitionWorkload,
    ABNWorkload.op: ABNWorkload,
}


def call_of(record: dict[str, Any]) -> Call:
    """Rebuild a workload from its record; those of attention do not name their op."""
    # JSON has no tuples.
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in record.items()}
    return _KINDS[record.get("op")](**values)


@dataclass(frozen=True)
class Measurement:
    """What one phase of one form cost.

    Attributes:
        workload: The call.
        form: Name of the form.
        phase: ``"forward"`` (without gradients), ``"backward"`` or ``"step"`` (both).
        status: ``"ok"``, ``"out of memory"``, ``"too large"`` (by prediction, not tried), ``"refused"``
            or ``"failed"``.
        reason: A sentence for every status but ``"ok"``.
        time: Percentiles in milliseconds.
        saved_bytes: Kept for backward, inputs and output among them.
        saved_extra_bytes: The same without the inputs' storages.
        saved_own_bytes: Kept for this call's sake, where the next layer keeps the outputs anyway and
            others the arguments that the call does not name as ``passing``.
        peak_bytes: Most memory in use beyond the inputs; results are part of it.
        predicted_bytes: The peak foreseen from the sizes alone.
    """

    workload: Call
    form: str
    phase: str
    status: str
    predicted_bytes: int
    reason: str = ""
    time: Timing | None = None
    saved_bytes: int | None = None
    saved_extra_bytes: int | None = None
    saved_own_bytes: int | None = None
    peak_bytes: int | None = None

    def to_record(self) -> dict[str, Any]:
        """Return nested plain values, ready for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        time = None if self.time is None else asdict(self.time)
        return values | {"workload": self.workload.to_record(), "time": time}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Measurement":
        """Rebuild from :meth:`to_record`'s result."""
        values = {field.name: record[field.name] for field in fields(cls)}
        values["workload"] = call_of(values["workload"])
        if values["time"] is not None:
            values["time"] = Timing(**values["time"])
        return cls(**values)


def measure(
    form: Form, workload: Call, phase: str, *, budget_s: float = 1.0, least: int = 3
) -> Measurement:
    """Measure one phase of one form in this process.

    Args:
        form: The way to compute it.
        workload: The call.
        phase: ``"forward"``, ``"backward"`` or ``"step"``.
        budget_s: Seconds of repeats.
        least: Fewest repeats.

    Returns:
        The measurement; refusals, lack of memory and errors of the form are statuses in it.

    Raises:
        ValueError: ``phase`` is unknown.
    """
    if phase not in PHASES:
        raise ValueError(f"measure: phase must be 'forward', 'backward' or 'step', got {phase!r}")
    predicted = form.predicted_bytes(workload, phase)

    def result(status: str, reason: str) -> Measurement:
        return Measurement(workload, form.name, phase, status, predicted, reason)

    refusal = form.refuses(workload)
    if refusal:
        return result(REFUSED, refusal)
    free = available_bytes(torch.device(workload.device))
    if free is not None and predicted > _HEADROOM * free:
        return result(TOO_LARGE, f"needs about {_gib(predicted)}, {_gib(free)} are free")
    try:
        return _measure(form, workload, phase, predicted, budget_s, least)
    except (RuntimeError, MemoryError, NotImplementedError) as error:
        if _is_out_of_memory(error):
            return result(OUT_OF_MEMORY, f"needs about {_gib(predicted)}")
        return result(FAILED, first_line(error))
    finally:
        if workload.device == "cuda":
            torch.cuda.empty_cache()


def _measure(
    form: Form, workload: Call, phase: str, predicted: int, budget_s: float, least: int
) -> Measurement:
    device = torch.device(workload.device)
    inputs = workload.inputs()
    count = len(workload.arguments)
    arguments, grad_outs = inputs[:count], inputs[count:]
    # A shared key is the query, and wanted once.
    wanted = tuple({id(tensor): tensor for tensor in arguments}.values())
    for tensor in wanted:
        tensor.requires_grad_(phase != FORWARD)

    def prepared() -> tuple[Tensor, ...]:
        return tuple(form.prepare(*arguments))

    def forward(tensors: Any) -> tuple[Tensor, ...]:
        return form.run(workload, tensors)

    def backward(outs: Any) -> tuple[Tensor, ...]:
        return torch.autograd.grad(outs, wanted, grad_outs)

    def outputs() -> tuple[Tensor, ...]:
        return forward(prepared())

    def step(tensors: Any) -> tuple[Tensor, ...]:
        return backward(forward(tensors))

    calls: dict[str, Callable[[object], object]] = {
        FORWARD: forward,
        BACKWARD: backward,
        STEP: step,
    }
    call = calls[phase]
    prepare = outputs if phase == BACKWARD else prepared
    meter = PeakMeter(device)
    passing = workload.passing
    staying = [
        t for t, name in zip(arguments, workload.arguments, strict=True) if name not in passing
    ]
    saved = None if phase == FORWARD else saved_bytes(outputs, wanted, staying)
    call(prepare())  # warms up
    # One call by itself: the results of the call before, or the timer's flush of the cache, would
    # count as memory.
    state = prepare()
    meter.restart()
    call(state)
    peak = meter.peak()
    del state
    timing = time_call(call, device, prepare=prepare, budget_s=budget_s, least=least)
    return Measurement(
        workload=workload,
        form=form.name,
        phase=phase,
        status=OK,
        predicted_bytes=predicted,
        time=timing,
        saved_bytes=saved.total if saved else None,
        saved_extra_bytes=saved.beyond_inputs if saved else None,
        saved_own_bytes=saved.own if saved else None,
        peak_bytes=None if phase == BACKWARD else peak,
    )


def first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        "can't allocate memory" in str(error)
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


@dataclass(frozen=True)
class Job:
    """One measurement to make: a form, a workload, a phase, and how long to repeat it."""

    form: Form
    workload: Call
    phase: str
    budget_s: float = 1.0
    least: int = 3

    def run(self) -> Measurement:
        """Measure in this process."""
        return measure(
            self.form, self.workload, self.phase, budget_s=self.budget_s, least=self.least
        )

    def to_record(self) -> dict[str, object]:
        """Return plain values that name the form by its provider."""
        return {
            "provider": self.form.provider,
            "form": self.form.name,
            "workload": self.workload.to_record(),
            "phase": self.phase,
            "budget_s": self.budget_s,
            "least": self.least,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Job":
        """Rebuild from :meth:`to_record`'s result, importing the form's provider."""
        form = importlib.import_module(record["provider"]).FORMS[record["form"]]
        workload = call_of(record["workload"])
        return cls(form, workload, record["phase"], record["budget_s"], record["least"])


def run_jobs(jobs: Sequence[Job]) -> Iterator[Measurement]:
    """Make measurements where each is sound, yielding them in order as they come.

    CUDA jobs run here. CPU jobs run in fresh processes, one for each run of jobs of one form, so that
    the memory of this process and of other forms does not blur their peaks; where the system cannot
    reset a peak, one for each job.

    Args:
        jobs: What to measure.

    Yields:
        One measurement for each job. When a process dies, the job it was at is ``"out of memory"`` if
        the system killed it and ``"failed"`` otherwise, and the rest go on in a new process.
    """
    together = peak_is_resettable()
    waiting = list(jobs)
    while waiting:
        first = waiting[0]
        if first.workload.device != "cpu":
            yield first.run()
            waiting = waiting[1:]
            continue
        count = 1
        while together and count < len(waiting) and _same_process(first, waiting[count]):
            count += 1
        done = 0
        for measurement in _run_apart(waiting[:count]):
            yield measurement
            done += 1
        waiting = waiting[done:]


def _same_process(first: Job, other: Job) -> bool:
    return other.form is first.form and other.workload.device == "cpu"


def _run_apart(jobs: Sequence[Job]) -> Iterator[Measurement]:
    """Run CPU jobs in one fresh process; stop after the job that killed it, if one did."""
    request = {"threads": torch.get_num_threads(), "jobs": [job.to_record() for job in jobs]}
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, "-m", "ocnet.engine.measure_child", json.dumps(request)]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as child:
            done = 0
            for line in child.stdout or ():
                if line.startswith(RESULT_MARK):
                    yield Measurement.from_record(json.loads(line[len(RESULT_MARK) :]))
                    done += 1
        if done == len(jobs):
            return
        errors.seek(0)
        said = errors.read().strip().splitlines()
    job = jobs[done]
    killed = child.returncode == -signal.SIGKILL
    yield Measurement(
        job.workload,
        job.form.name,
        job.phase,
        OUT_OF_MEMORY if killed else FAILED,
        job.form.predicted_bytes(job.workload, job.phase),
        "the system ended the process"
        if killed
        else f"the process ended with {child.returncode}: {said[-1] if said else 'no message'}",
    )


RESULT_MARK = "measurement "
