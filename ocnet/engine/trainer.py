# SPDX-License-Identifier: MIT
"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ocnet.data import Batch, DatasetInfo, Loader
from ocnet.engine.checkpoint import (
    load_training_state,
    random_state,
    save_training_state,
    set_random_state,
)
from ocnet.engine.config import RunConfig, TrainConfig, differences, load_config, save_config
from ocnet.engine.logging import MetricsFile, ProgressLog, Record
from ocnet.engine.optim import build_optimizer, build_schedule
from ocnet.engine.run import (
    CHECKPOINT_FILE,
    CLASSES_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    WEIGHTS_FILE,
    build_datasets,
    build_model,
    pick_device,
    save_run_weights,
)
from ocnet.evaluation import Evaluation, evaluate, write_class_table
from ocnet.losses import DSNLoss
from ocnet.models import Segmentor

# What a continued run may change: none of it has a part in what is computed.
_FREE_KEYS = frozenset(
    {
        "train.run_dir",
        "train.resume",
        "train.device",
        "train.log_every",
        "train.eval_every",
        "data.workers",
        "data.eval_batch_size",
        "data.check",
    }
)


@dataclass(frozen=True)
class TrainResult:
    """What a training run leaves behind.

    Attributes:
        model: the trained network, in evaluation mode, on the device of the training.
        history: the records of ``metrics.jsonl``: ``step``, ``loss`` (mean since the record before),
            ``lr`` (of that step), ``images_per_s`` and, where the network was evaluated, ``miou``,
            ``pixel_accuracy`` and the accuracies of the data set's pixel groups.
        info: classes, colours and normalisation of the data set.
        evaluation: counts of the last evaluation, of the validation split.
        run_dir: folder with config, metrics, per-class table, checkpoint and weights.
    """

    model: Segmentor
    history: list[Record]
    info: DatasetInfo
    evaluation: Evaluation
    run_dir: Path


def train(
    config: RunConfig,
    *,
    on_step: Callable[[Record], None] | None = None,
    title: str | None = None,
) -> TrainResult:
    """Train a network and keep everything about it in one folder.

    Data, labels, network and device are checked before the folder is touched. With
    ``train.resume=auto`` a run that was stopped goes on from its last checkpoint and, on the CPU
    with as many threads, ends with the same weights to the bit. The caller's random state is left
    as it was.

    Args:
        config: what to train.
        on_step: called with each record of the history when it is made.
        title: name of the run on the screen; default: name of the network.

    Returns:
        Network, history, last evaluation, and the folder.

    Raises:
        FileNotFoundError: files of the data set, or weights to start from, are missing.
        ValueError: a label is no class, an option does not fit, or the folder holds a run of
            another config.
        RuntimeError: the loss became infinite or NaN; checkpoints up to then are kept.
    """
    device = pick_device(config.train.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        trainer = _Trainer(config, device, on_step)
        return trainer.run(config.model.name if title is None else title)


class _Trainer:
    def __init__(
        self, config: RunConfig, device: torch.device, on_step: Callable[[Record], None] | None
    ) -> None:
        self._config = config
        self._device = device
        self._on_step = on_step
        self._run_dir = Path(config.train.run_dir)
        saved = self._saved_state()
        self._train_set, self._val_set = build_datasets(config.data)
        for dataset in (self._train_set, self._val_set):
            dataset.check(config.data.check)

        torch.manual_seed(config.train.seed)
        self._info = self._train_set.info
        self._model = build_model(config.model, self._info).to(device)
        self._layout = (
            torch.channels_last if config.train.channels_last else torch.contiguous_format
        )
        self._model.to(memory_format=self._layout)  # type: ignore[call-overload]
        self._criterion = DSNLoss(config.train.aux_weight, self._train_set.ignore_index)
        self._optimizer = build_optimizer(self._model, config.optim)
        self._schedule = build_schedule(self._optimizer, config.optim, config.train.steps)
        self._loader = Loader(
            self._train_set,
            config.train.batch_size,
            config.train.seed,
            config.data.workers,
            pin_memory=device.type == "cuda",
        )
        self._bf16 = use_bf16(config.train, device)
        self._step = 0
        self._history: list[Record] = []
        if saved is not None:
            self._restore(saved)

    def run(self, title: str) -> TrainResult:
        """Train to the last step."""
        settings = self._config.train
        self._run_dir.mkdir(parents=True, exist_ok=True)
        save_config(self._config, self._run_dir / CONFIG_FILE)
        metrics = MetricsFile(self._run_dir / METRICS_FILE, self._history)
        evaluation: Evaluation | None = None
        with ProgressLog(title, settings.steps, self._step) as log:
            log.line(self._headline(title))
            meter = _Meter(self._device)
            for batch in self._batches():
                lr = self._optimizer.param_groups[0]["lr"]
                loss = self._update(batch)
                self._step += 1
                meter.add(self._step, loss, len(batch.names))
                log.step(self._step)
                last = self._step == settings.steps
                evaluating = last or self._step % settings.eval_every == 0
                if not (evaluating or self._step % settings.log_every == 0):
                    continue
                record = {"step": self._step, "lr": lr, **meter.read()}
                if evaluating:
                    evaluation = self._evaluate()
                    record |= evaluation.scores()
                self._history.append(record)
                metrics.append(record)
                if evaluation is not None and evaluating:
                    self._save(evaluation)
                log.record(record)
                if self._on_step is not None:
                    self._on_step(record)
                meter.restart()
        if evaluation is None:  # the run was complete already
            evaluation = self._evaluate()
        return TrainResult(self._model.eval(), self._history, self._info, evaluation, self._run_dir)

    def _batches(self) -> Iterator[Batch]:
        """Yield the batches that are left."""
        left = self._config.train.steps - self._step
        # zip asks the range first, so no batch is drawn in vain.
        for _, batch in zip(range(left), self._loader, strict=False):
            yield batch

    def _update(self, batch: Batch) -> Tensor:
        """Do one step of the optimiser and return its loss."""
        self._model.train()
        images = batch.images.to(self._device, memory_format=self._layout, non_blocking=True)
        labels = batch.labels.to(self._device, non_blocking=True)
        with self._autocast():
            loss: Tensor = self._criterion(self._model(images), labels)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        clip_norm = self._config.optim.clip_norm
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), clip_norm)
        self._optimizer.step()
        self._schedule.step()
        return loss.detach()

    def _evaluate(self) -> Evaluation:
        with self._autocast():
            return evaluate(
                self._model,
                self._val_set,
                batch_size=self._config.data.eval_batch_size,
                device=self._device,
            )

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)

    def _save(self, evaluation: Evaluation) -> None:
        rows = evaluation.confusion.per_class_table(self._info.class_names)
        write_class_table(self._run_dir / CLASSES_FILE, rows)
        save_run_weights(self._run_dir / WEIGHTS_FILE, self._model, self._config, self._info)
        state = {
            "step": self._step,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "random": random_state(self._device),
            "loader": self._loader.position,
            "history": self._history,
        }
        save_training_state(self._run_dir / CHECKPOINT_FILE, state)

    def _saved_state(self) -> dict[str, Any] | None:
        """Return the checkpoint to go on from, if there is one and it is of this config."""
        path = self._run_dir / CHECKPOINT_FILE
        if self._config.train.resume == "never" or not path.exists():
            return None
        before = load_config(self._run_dir / CONFIG_FILE)
        for key, (then, now) in differences(before, self._config).items():
            if key not in _FREE_KEYS:
                raise ValueError(
                    f"config: {key} must be {then} to continue the run in {self._run_dir} (use "
                    f"another train.run_dir, or train.resume=never to start over), got {now}"
                )
        return load_training_state(path)

    def _restore(self, saved: dict[str, Any]) -> None:
        self._model.load_state_dict(saved["model"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self._schedule.load_state_dict(saved["schedule"])
        set_random_state(saved["random"], self._device)
        self._loader.position = saved["loader"]
        self._step = saved["step"]
        self._history = saved["history"]

    def _headline(self, title: str) -> str:
        parameters = sum(parameter.numel() for parameter in self._model.parameters())
        start = f", going on after step {self._step}" if self._step else ""
        return (
            f"{title}: {parameters:,} parameters on {self._device} in "
            f"{'bf16' if self._bf16 else 'fp32'}, {len(self._train_set)} training and "
            f"{len(self._val_set)} validation pictures, into {self._run_dir}{start}"
        )


class _Meter:
    """Mean loss and throughput since the last record, without waiting for the GPU at each step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.restart()

    def restart(self) -> None:
        self._sum = torch.zeros((), dtype=torch.float64, device=self._device)
        self._first_bad = torch.zeros((), dtype=torch.int64, device=self._device)
        self._bad_loss = torch.zeros((), dtype=torch.float64, device=self._device)
        self._steps = 0
        self._images = 0
        self._start = time.perf_counter()

    def add(self, step: int, loss: Tensor, images: int) -> None:
        bad = (self._first_bad == 0) & ~torch.isfinite(loss)
        self._first_bad = torch.where(bad, step, self._first_bad)
        self._bad_loss = torch.where(bad, loss.double(), self._bad_loss)
        self._sum += loss
        self._steps += 1
        self._images += images

    def read(self) -> Record:
        """Return ``loss`` and ``images_per_s``; raise RuntimeError if a loss was not finite."""
        first_bad = int(self._first_bad)
        if first_bad:
            raise RuntimeError(
                f"train: loss must stay finite, got {float(self._bad_loss)} at step {first_bad} "
                f"(a smaller optim.lr, or optim.clip_norm, may help)"
            )
        loss = float(self._sum) / self._steps
        # Reading the loss has waited for the GPU, so the time is that of the work.
        elapsed = time.perf_counter() - self._start
        return {"loss": loss, "images_per_s": self._images / elapsed}


def use_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Tell whether a run computes in bf16 where autocast allows it.

    Args:
        config: ``precision`` decides; ``auto`` is bf16 on GPUs that have it.
        device: where the run computes.

    Returns:
        Whether autocast is on.
    """
    if config.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return config.precision == "bf16"
