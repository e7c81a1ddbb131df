# SPDX-License-Identifier: MIT
"""The training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ocnet.data import Batch, DatasetInfo, Loader, SegmentationDataset
from ocnet.data.loader import mix_seeds
from ocnet.engine.checkpoint import (
    load_training_state,
    random_state,
    save_training_state,
    set_random_state,
)
from ocnet.engine.config import LossConfig, RunConfig, TrainConfig
from ocnet.engine.config_files import differences, load_config, save_config
from ocnet.engine.datasets import build_datasets
from ocnet.engine.distributed import World, joined
from ocnet.engine.inference import inference_options
from ocnet.engine.logging import ProgressLog
from ocnet.engine.loss_meter import LossMeter
from ocnet.engine.optim import build_optimizer, build_schedule
from ocnet.engine.provenance import write_provenance
from ocnet.engine.records import Record, RecordFiles, check_tensorboard
from ocnet.engine.run import (
    CHECKPOINT_FILE,
    CLASSES_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    METRICS_TABLE,
    REPEAT_FILE,
    TENSORBOARD_FOLDER,
    WEIGHTS_FILE,
    build_model,
    pick_device,
    save_run_weights,
)
from ocnet.evaluation import Evaluation, evaluate, write_class_table
from ocnet.losses import SegmentationLoss
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
        "train.tensorboard",
        "eval.batch_size",
        "eval.tile_batch",
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

    Started by ``torchrun``, the processes share each batch: losses are means over what each has, averaged,
    as OCNet's over its GPUs; the first process alone writes and speaks.

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
    with (
        joined(pick_device(config.train.device)) as (world, device),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        trainer = _Trainer(config, device, world, on_step)
        return trainer.run(config.model.name if title is None else title)


class _Trainer:
    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        world: World,
        on_step: Callable[[Record], None] | None,
    ) -> None:
        self._config = config
        self._device = device
        self._world = world
        self._on_step = on_step
        self._run_dir = Path(config.train.run_dir)
        # Made first: a wrong option must not show after the first thousand steps.
        self._inference = inference_options(config.eval)
        saved = self._saved_state()
        self._train_set, self._val_set = build_datasets(config.data)
        self._loader = Loader(
            self._train_set,
            config.train.batch_size,
            config.train.seed,
            config.data.workers,
            pin_memory=device.type == "cuda",
            rank=world.rank,
            processes=world.size,
        )
        if config.train.tensorboard:
            check_tensorboard()
        for dataset in (self._train_set, self._val_set):
            _check(dataset, config.data.check)

        torch.manual_seed(config.train.seed)
        self._info = self._train_set.info
        model, self._weights = build_model(config.model, self._info)
        self._model = model.to(device)
        self._layout = (
            torch.channels_last if config.train.channels_last else torch.contiguous_format
        )
        self._model.to(memory_format=self._layout)  # type: ignore[call-overload]
        self._network = world.parallel(self._model, device)
        self._criterion = build_loss(config.loss, self._train_set).to(device)
        self._optimizer = build_optimizer(self._model, config.optim, self._model.backbone_children)
        self._schedule = build_schedule(self._optimizer, config.optim, config.train.steps)
        if not world.first:
            # Processes drop different channels.
            torch.manual_seed(mix_seeds(config.train.seed, world.rank))
        self._bf16 = use_bf16(config.train, device)
        self._step = 0
        self._history: list[Record] = []
        if saved is not None:
            self._restore(saved)

    def run(self, title: str) -> TrainResult:
        """Train to the last step."""
        settings = self._config.train
        files = self._open() if self._world.first else None
        evaluation: Evaluation | None = None
        with ProgressLog(title, settings.steps, self._step, quiet=not self._world.first) as log:
            log.line(self._headline(title))
            if self._weights is not None:
                log.line(f"{title}: weights of {self._config.model.weights}: {self._weights}")
            meter = LossMeter(self._device, self._world)
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
                if files is not None:
                    files.append(record)
                if evaluation is not None and evaluating:
                    self._save(evaluation)
                log.record(record)
                if self._on_step is not None:
                    self._on_step(record)
                meter.restart()
        if files is not None:
            files.close()
        if evaluation is None:  # the run was complete already
            evaluation = self._evaluate()
        return TrainResult(self._model.eval(), self._history, self._info, evaluation, self._run_dir)

    def _open(self) -> RecordFiles:
        """Make the run folder, and write what is known before the first step."""
        self._run_dir.mkdir(parents=True, exist_ok=True)
        save_config(self._config, self._run_dir / CONFIG_FILE)
        write_provenance(self._run_dir / REPEAT_FILE, self._config, self._device, self._world.size)
        board = self._run_dir / TENSORBOARD_FOLDER if self._config.train.tensorboard else None
        return RecordFiles(
            self._run_dir / METRICS_FILE, self._run_dir / METRICS_TABLE, board, self._history
        )

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
            loss: Tensor = self._criterion(self._network(images), labels)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        clip_norm = self._config.optim.clip_norm
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), clip_norm)
        self._optimizer.step()
        self._schedule.step()
        return loss.detach()

    def _evaluate(self) -> Evaluation:
        # Norms that are not synchronised have seen other pictures in each process.
        self._world.same_buffers(self._model)
        with self._autocast():
            counted = evaluate(
                self._model,
                self._val_set,
                options=self._inference,
                batch_size=self._config.eval.batch_size,
                device=self._device,
                indices=self._world.share(len(self._val_set)),
            )
        everywhere: Evaluation
        everywhere, *others = self._world.all_of(counted)
        for other in others:
            everywhere.merge(other)
        return everywhere

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)

    def _save(self, evaluation: Evaluation) -> None:
        random = self._world.all_of(random_state(self._device))
        if not self._world.first:
            return
        rows = evaluation.confusion.per_class_table(self._info.class_names)
        write_class_table(self._run_dir / CLASSES_FILE, rows)
        save_run_weights(self._run_dir / WEIGHTS_FILE, self._model, self._config, self._info)
        state = {
            "step": self._step,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "random": random,
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
        if len(saved["random"]) > self._world.rank:
            set_random_state(saved["random"][self._world.rank], self._device)
        self._loader.position = saved["loader"]
        self._step = saved["step"]
        self._history = saved["history"]

    def _headline(self, title: str) -> str:
        parameters = sum(parameter.numel() for parameter in self._model.parameters())
        start = f", going on after step {self._step}" if self._step else ""
        devices = f"{self._device}" + (
            f" and {self._world.size - 1} more" if self._world.size > 1 else ""
        )
        return (
            f"{title}: {parameters:,} parameters on {devices} in "
            f"{'bf16' if self._bf16 else 'fp32'}, {len(self._train_set)} training and "
            f"{len(self._val_set)} validation pictures, into {self._run_dir}{start}"
        )


def _check(dataset: SegmentationDataset, limit: int) -> None:
    try:
        dataset.check(limit)
    except ValueError as error:
        raise ValueError(f"{error} (ocnet data check looks at all files)") from error


def build_loss(config: LossConfig, dataset: SegmentationDataset) -> SegmentationLoss:
    """Return the loss of a config.

    Args:
        config: which.
        dataset: whose classes and ignore value.

    Raises:
        ValueError: the class weights are not one for each class.
    """
    weights = config.class_weights
    if weights is not None and len(weights) != dataset.num_classes:
        raise ValueError(
            f"config: loss.class_weights must have one weight for each of {dataset.num_classes} classes, "
            f"got {len(weights)}"
        )
    return SegmentationLoss(
        aux_weight=config.aux_weight,
        edge_weight=config.edge_weight,
        ignore_index=dataset.ignore_index,
        weight=None if weights is None else torch.tensor(weights),
        ohem=config.ohem,
        ohem_kind=config.ohem_kind,
        ohem_threshold=config.ohem_threshold,
        ohem_keep=config.ohem_keep,
    )


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
