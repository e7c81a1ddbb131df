# SPDX-License-Identifier: MIT
"""The main job: object context against its local control on look-up mosaics, and what attention costs.

Both heads are trained alike on the same pictures and differ in one thing: whether a pixel can look at all
others. Then the fused op is measured against the plain formula on this device. Everything lands in one
folder, with a page that shows it.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ocnet.engine.config import (
    DataConfig,
    EvalConfig,
    ModelConfig,
    MosaicsConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from ocnet.engine.measure import OK, Job, Measurement, run_jobs
from ocnet.engine.meters import device_name
from ocnet.engine.run import pick_device
from ocnet.engine.trainer import TrainResult, train, use_bf16
from ocnet.engine.workload import FORMS, FORWARD, STEP, Call, Workload
from ocnet.ops import Explanation, explain
from ocnet.report.style import bytes_text, time_text

OBJECT_CONTEXT, LOCAL_CONTROL = "object context", "local control"
HEADS = {OBJECT_CONTEXT: "tiny_base_oc", LOCAL_CONTROL: "tiny_local"}
FLAT = "flat"

# What "clearly better" means. In trial runs of three seeds the heads were 0.13 to 0.28 apart in mIoU and
# a factor 2.8 to 3.6 in flat pixels; these bounds leave room for a seed, not for a broken attention.
MIOU_MARGIN = 0.10
FLAT_FACTOR = 1.5

_SIDES = (24, 33, 48, 65, 97)
_CHANNELS = 256
Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoOptions:
    """What the job does.

    Attributes:
        out: Folder to write into.
        steps: Training steps of each head.
        seed: Seed of the weights and of the mosaics.
        fast: Tiny sizes, to see that everything runs; the result means nothing then.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
    """

    out: Path = Path("runs/demo")
    steps: int = 500
    seed: int = 0
    fast: bool = False
    device: str = "auto"


@dataclass(frozen=True)
class HeadScore:
    """What one head reached on the validation mosaics, each as a fraction."""

    miou: float
    flat_accuracy: float
    textured_accuracy: float


@dataclass(frozen=True)
class Findings:
    """What the job found, drawn nowhere yet.

    Attributes:
        device: Model of the device.
        explanation: Which back end ran, and why each other did not.
        object_context: Score of the head with attention.
        local_control: Score of the control.
        measurements: Cost of attention by form, size and phase.
        seconds: How long training and measuring took.
    """

    device: str
    explanation: Explanation
    object_context: HeadScore
    local_control: HeadScore
    measurements: Sequence[Measurement] = field(default_factory=tuple)
    seconds: float = 0.0

    @property
    def context_wins(self) -> bool:
        """Whether object context beat the control clearly, by ``MIOU_MARGIN`` and ``FLAT_FACTOR``."""
        gain = self.object_context.miou - self.local_control.miou
        bound = FLAT_FACTOR * self.local_control.flat_accuracy
        return gain >= MIOU_MARGIN and self.object_context.flat_accuracy >= bound

    def sentences(self) -> list[str]:
        """Say in plain words what was found."""
        told = [
            f"This ran on {self.device}; attention took the back end '{self.explanation.chosen}'.",
            *self._score_sentences(),
        ]
        told += cost_sentences(self.measurements)
        return told

    def _score_sentences(self) -> Iterator[str]:
        context, local = self.object_context, self.local_control
        yield (
            f"Mean IoU on unseen mosaics: {context.miou:.3f} with object context, "
            f"{local.miou:.3f} for the local control with the same number of parameters."
        )
        yield (
            f"Of the flat pixels, whose class only a far region tells, object context got "
            f"{context.flat_accuracy:.0%} right and the control {local.flat_accuracy:.0%} "
            f"(guessing: 20%); of the textured ones {context.textured_accuracy:.0%} and "
            f"{local.textured_accuracy:.0%}."
        )
        if self.context_wins:
            yield (
                f"Object context clearly beat the local control (asked: {MIOU_MARGIN:.2f} more mIoU "
                f"and {FLAT_FACTOR:g} times the flat pixels)."
            )
        else:
            yield (
                f"Object context did NOT clearly beat the local control: asked were "
                f"{MIOU_MARGIN:.2f} more mIoU and {FLAT_FACTOR:g} times the flat pixels."
            )


def cost_sentences(measurements: Sequence[Measurement]) -> list[str]:
    """Compare the fused op with the plain formula at the largest size that both ran."""
    steps = {(m.form, m.workload): m for m in measurements if m.phase == STEP and m.status == OK}
    both = [w for form, w in steps if form == "fused" and ("naive", w) in steps]
    told = []
    if both:
        workload = max(both, key=lambda w: w.L)
        fused, naive = steps["fused", workload], steps["naive", workload]
        told.append(_compare(workload, fused, naive))
    for m in measurements:
        if m.status != OK and m.phase == STEP:
            told.append(f"{m.form} at {m.workload.H} x {m.workload.W}: {m.status}, {m.reason}.")
    return told


def _compare(workload: Call, fused: Measurement, naive: Measurement) -> str:
    parts = [
        f"At {workload.H} x {workload.W} tokens and {workload.channels} channels a training step"
    ]
    if fused.saved_bytes and naive.saved_bytes:
        parts.append(
            f"keeps {bytes_text(fused.saved_bytes)} for backward with the fused op and "
            f"{bytes_text(naive.saved_bytes)} with the plain formula "
            f"({naive.saved_bytes / fused.saved_bytes:.1f} times as much)"
        )
    if fused.peak_bytes and naive.peak_bytes:
        parts.append(
            f"peaks at {bytes_text(fused.peak_bytes)} against {bytes_text(naive.peak_bytes)} "
            f"({naive.peak_bytes / fused.peak_bytes:.1f} times as much)"
        )
    if fused.time is not None and naive.time is not None:
        parts.append(f"takes {time_text(fused.time.p50)} against {time_text(naive.time.p50)}")
    return f"{parts[0]} {', '.join(parts[1:])}."


def head_config(options: DemoOptions, name: str) -> RunConfig:
    """Return the training config of one head.

    Args:
        options: The job.
        name: Name of the network.

    Returns:
        The config of ``configs/mosaics/<name>.yaml`` with the steps, seed and folder of the job; with
        ``fast``, small mosaics and few steps.
    """
    mosaics = MosaicsConfig(seed=options.seed)
    steps, every = options.steps, max(1, options.steps // 5)
    if options.fast:
        mosaics = MosaicsConfig(size=32, train_length=64, val_length=8, seed=options.seed)
        steps, every = min(steps, 4), 2
    return RunConfig(
        data=DataConfig("mosaics", mosaics=mosaics),
        eval=EvalConfig(batch_size=8),
        model=ModelConfig(name, norm="batchnorm"),
        train=TrainConfig(
            run_dir=str(options.out / name),
            steps=steps,
            seed=options.seed,
            device=options.device,
            eval_every=every,
            log_every=min(10, every),
            resume="never",
        ),
        optim=OptimConfig(),
    )


def attention_jobs(device: torch.device, fast: bool) -> list[Job]:
    """Return the measurements of the job: every form over the sizes, forward and whole step."""
    sides, channels = ((6, 9), 16) if fast else (_SIDES, _CHANNELS)
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    budget, least = (0.0, 1) if fast else (0.4, 2)
    return [
        Job(
            form,
            Workload(1, side, side, E=channels, Ev=channels, dtype=dtype, device=device.type),
            phase,
            budget,
            least,
        )
        for form in FORMS.values()
        for side in sides
        for phase in (FORWARD, STEP)
    ]


def run_demo(options: DemoOptions, say: Say = print) -> Findings:
    """Do the whole job.

    Args:
        options: What to do.
        say: Takes each line of text that is not the trainer's.

    Returns:
        What was found; all files are written.

    Raises:
        RuntimeError: matplotlib or scikit-image is missing; nothing is trained then.
    """
    # Imported first: a missing package must show before a minute of training.
    from ocnet.engine import demo_pictures

    demo_pictures.check_packages()
    begin = time.monotonic()
    device = pick_device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    explanation = explain_training(options, device)
    say(f"Device: {device_name(device)}")
    say(f"Back end of attention: {explanation}")
    results = {
        label: train(head_config(options, name), title=label) for label, name in HEADS.items()
    }
    say("Measuring attention: the fused op, the plain formula, and torch's own kernel")
    measurements = []
    jobs = attention_jobs(device, options.fast)
    # Fresh processes make peaks sharp; to see that all runs, their start is not worth the wait.
    for measurement in (job.run() for job in jobs) if options.fast else run_jobs(jobs):
        say(f"  {measurement_line(measurement)}")
        measurements.append(measurement)
    scores = {label: _score(result) for label, result in results.items()}
    findings = Findings(
        device_name(device),
        explanation,
        scores[OBJECT_CONTEXT],
        scores[LOCAL_CONTROL],
        measurements,
        time.monotonic() - begin,
    )
    write_metrics(options.out / "metrics.jsonl", results, findings)
    files = demo_pictures.write_all(options, results, findings)
    say("")
    for sentence in findings.sentences():
        say(sentence)
    say(f"Written to {options.out}: {', '.join(path.name for path in files)}")
    return findings


def explain_training(options: DemoOptions, device: torch.device) -> Explanation:
    """Explain the call that the network of the job makes in training."""
    bf16 = use_bf16(head_config(options, HEADS[OBJECT_CONTEXT]).train, device)
    dtype = torch.bfloat16 if bf16 else torch.float32
    key = torch.zeros(8, 32, 24, 24, device=device, dtype=dtype)
    return explain("oc_attention", key, key, key)


def measurement_line(measurement: Measurement) -> str:
    """Write one measurement as a line of text."""
    workload = measurement.workload
    head = f"{measurement.form:<6} {workload.H:>3} x {workload.W:<3} {measurement.phase:<8}"
    if measurement.time is None:
        return f"{head} {measurement.status}: {measurement.reason}"
    parts = [f"{measurement.time.p50:9.2f} ms"]
    if measurement.saved_bytes is not None:
        parts.append(f"saved {bytes_text(measurement.saved_bytes)}")
    if measurement.peak_bytes is not None:
        parts.append(f"peak {bytes_text(measurement.peak_bytes)}")
    return f"{head} {'  '.join(parts)}"


def _score(result: TrainResult) -> HeadScore:
    groups = result.evaluation.groups
    return HeadScore(result.evaluation.mean_iou, groups[FLAT].accuracy, groups["textured"].accuracy)


def write_metrics(path: Path, results: dict[str, TrainResult], findings: Findings) -> None:
    """Write all numbers as JSON lines: training records, measurements, then the findings."""
    lines: list[dict[str, object]] = [
        {"kind": "training", "head": label, **_legal(record)}
        for label, result in results.items()
        for record in result.history
    ]
    lines += [{"kind": "measurement", **m.to_record()} for m in findings.measurements]
    lines.append(
        {
            "kind": "findings",
            "device": findings.device,
            "backend": findings.explanation.chosen,
            "reasons": findings.explanation.reasons,
            OBJECT_CONTEXT: _legal(asdict(findings.object_context)),
            LOCAL_CONTROL: _legal(asdict(findings.local_control)),
            "context_wins": findings.context_wins,
            "seconds": round(findings.seconds, 1),
        }
    )
    path.write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines), "utf-8")


def _legal(record: dict[str, float]) -> dict[str, float | None]:
    """Replace NaN, which JSON lacks."""
    return {key: None if math.isnan(value) else value for key, value in record.items()}
