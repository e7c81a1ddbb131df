# SPDX-License-Identifier: MIT
"""What a training run is made of: typed sections with their checks."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class MosaicsConfig:
    """Options of ``ocnet.data.LookupMosaics``.

    Attributes:
        size: side of the images, pixels.
        train_length: training samples.
        val_length: validation samples.
        flat_fraction: share of the free regions without texture, 0 to 1.
        seed: seed of both splits.
    """

    size: int = 96
    train_length: int = 4096
    val_length: int = 64
    flat_fraction: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class AugmentConfig:
    """How training samples are drawn out of pictures; all have the size ``crop``.

    Attributes:
        kind: ``crops`` (``ocnet.data.Crops``: OCNet, openseg, HRNet) or ``affine``
            (``ocnet.data.AffineCrops``: CE2P, which takes only ``crop``, ``rotation``, ``affine_scale`` and
            ``flip`` of these).
        crop: rows and columns, pixels.
        resize_short: first resize the short side to this, pixels.
        resize_to: first resize to these rows and columns, whatever the shape.
        resize_long: resize the long side to this times the random scale, in one go.
        scale_min: smallest random scale.
        scale_max: largest random scale.
        scale_step: distance of the scales that can come; 0: all between.
        aspect_min: smallest random ratio by which width gains over height.
        aspect_max: largest such ratio.
        interpolation: of pictures, ``linear`` or ``cubic``; labels take the nearest pixel.
        flip: mirror half of the samples, ``before`` everything else or ``after`` the crop; or ``none``.
        brightness: most that is added to or taken from all pixels, of 255.
        rounding: how the random scale makes sides whole, to the ``nearest`` pixel or ``down``.
        pad: what surrounds small pictures, the ``mean`` colour or ``black``.
        pad_at: where small pictures are padded, at the ``end`` of rows and columns, or ``random``.
        rotation: deviation of the random rotation of ``affine``, degrees.
        affine_scale: deviation of the random scale of ``affine``.
    """

    kind: Literal["crops", "affine"] = "crops"
    crop: list[int] = field(default_factory=lambda: [512, 512])
    resize_short: int | None = None
    resize_to: list[int] | None = None
    resize_long: int | None = None
    scale_min: float = 0.5
    scale_max: float = 2.0
    scale_step: float = 0.0
    aspect_min: float = 1.0
    aspect_max: float = 1.0
    interpolation: Literal["linear", "cubic"] = "linear"
    flip: Literal["none", "before", "after"] = "after"
    brightness: int = 0
    rounding: Literal["nearest", "down"] = "nearest"
    pad: Literal["mean", "black"] = "mean"
    pad_at: Literal["end", "random"] = "end"
    rotation: float = 30.0
    affine_scale: float = 0.25

    def __post_init__(self) -> None:
        _pair("data.augment.crop", self.crop)
        if self.resize_to is not None:
            _pair("data.augment.resize_to", self.resize_to)


@dataclass(frozen=True)
class DataConfig:
    """Which data set, and how it is loaded.

    Attributes:
        name: ``mosaics`` (look-up mosaics), ``folder`` (your own pictures), or a published data set.
        root: folder of the data set; relative paths start at ``OCNET_DATA_ROOT``.
        train: split to train on, or several joined by ``+``. Of ``folder``: a folder below ``root`` with
            ``images`` and ``labels``. Of Cityscapes also a list file, ``.lst``.
        val: the same, to validate on.
        test: the same, to submit; its labels are not needed.
        class_names: of ``folder``, one name per class, in the order of the class numbers.
        label_map: of ``folder``, class number of each value that label files have, 255 for none; by
            default they have class numbers, and 255 for none.
        input: what networks are given, by the name of ``ocnet.data.INPUTS``.
        mean: of ``folder``, mean of a normalisation of your own in the place of ``input``: one value for grey
            pictures or three for colour, in units of full brightness.
        std: its deviation, as many values.
        augment: how training samples are drawn; not of mosaics.
        mosaics: options of the mosaics.
        workers: processes that prepare batches; 0 prepares them in the training process.
        check: samples of each split whose labels are checked before the first step. Every label is
            checked when it is read in any case.
    """

    name: Literal[
        "mosaics",
        "folder",
        "cityscapes",
        "ade20k",
        "lip",
        "coco_stuff",
        "pascal_context_59",
        "pascal_context_60",
    ]
    root: str = ""
    train: str = "train"
    val: str = "val"
    test: str = "test"
    class_names: list[str] = field(default_factory=list)
    label_map: dict[int, int] = field(default_factory=dict)
    input: Literal["imagenet", "ocnet", "openseg", "openseg_lip", "openseg_hrnet", "ce2p"] = (
        "imagenet"
    )
    mean: list[float] | None = None
    std: list[float] | None = None
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mosaics: MosaicsConfig = field(default_factory=MosaicsConfig)
    workers: int = 0
    check: int = 64

    def __post_init__(self) -> None:
        needed = {"mosaics": (), "folder": ("root", "class_names")}.get(self.name, ("root",))
        for key in needed:
            if not getattr(self, key):
                raise ValueError(
                    f"config: data.{key} must be given when data.name is {self.name}, got nothing"
                )
        if self.name != "folder":
            for key in ("class_names", "label_map", "mean", "std"):
                if getattr(self, key):
                    raise ValueError(
                        f"config: data.{key} must be left out when data.name is {self.name}, which has "
                        f"its own, got {getattr(self, key)}"
                    )
        if (self.mean is None) != (self.std is None):
            raise ValueError(
                "config: data.mean and data.std must be given together, got one of them"
            )
        _at_least("data.workers", self.workers, 0)
        _at_least("data.check", self.check, 0)


@dataclass(frozen=True)
class ModelConfig:
    """Which network.

    Attributes:
        name: a name that ``ocnet.models.create`` knows.
        norm: batch norm of the network: ``batchnorm``, ``inplace_abn`` (keeps only its output for
            backward), ``inplace_abn_sync`` (the same over all processes) or ``syncbn`` (torch's, on GPUs);
            none: as published, mostly ``inplace_abn_sync``.
        options: further options of ``create``, by name.
        weights: file to start from, that ``ocnet.models.load_checkpoint`` reads: a whole network, or the
            backbone alone; none: fresh weights.
        weights_strict: whether all of the file must fit; otherwise what does not fit, such as a classifier of
            other classes, starts afresh.
    """

    name: str
    norm: Literal["batchnorm", "inplace_abn", "inplace_abn_sync", "syncbn"] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    weights_strict: bool = True

    def __post_init__(self) -> None:
        if "norm" in self.options:
            raise ValueError(
                f"config: model.options must leave norm to model.norm, got {self.options['norm']}"
            )
        for taken in ("num_classes", "in_channels"):
            if taken in self.options:
                raise ValueError(
                    f"config: model.options must leave {taken} to the data set, "
                    f"got {self.options[taken]}"
                )


@dataclass(frozen=True)
class LossConfig:
    """What is made small; see ``ocnet.losses.SegmentationLoss``.

    Attributes:
        aux_weight: weight of the loss of auxiliary logits.
        edge_weight: weight of the loss of edges; of CE2P only.
        class_weights: one weight for each class; none: 1.
        ohem: which losses count hard pixels only: ``none``, ``single`` (the main one) or ``both`` (that of
            auxiliary logits too).
        ohem_kind: whose rule: ``ocnet``, ``openseg`` or ``hrnet``.
        ohem_threshold: pixels whose true class has at most this probability are hard.
        ohem_keep: at least so many of a batch on one device are kept.
    """

    aux_weight: float = 0.4
    edge_weight: float = 1.0
    class_weights: list[float] | None = None
    ohem: Literal["none", "single", "both"] = "none"
    ohem_kind: Literal["ocnet", "openseg", "hrnet"] = "ocnet"
    ohem_threshold: float = 0.7
    ohem_keep: int = 100_000

    def __post_init__(self) -> None:
        _at_least("loss.aux_weight", self.aux_weight, 0)
        _at_least("loss.edge_weight", self.edge_weight, 0)
        _at_least("loss.ohem_threshold", self.ohem_threshold, 0)
        _at_least("loss.ohem_keep", self.ohem_keep, 0)


@dataclass(frozen=True)
class OptimConfig:
    """How weights are updated.

    Attributes:
        name: ``adamw`` or ``sgd``.
        lr: learning rate of the schedule: its largest, or the one it starts from.
        head_lr: how many times that rate all has that is not in the backbone.
        weight_decay: decoupled decay for ``adamw``, L2 penalty for ``sgd``.
        momentum: momentum of ``sgd``.
        schedule: ``one_cycle`` (up, then down to nearly 0), ``poly`` or ``constant``.
        power: exponent of ``poly``, ``lr * (1 - step / steps) ** power``.
        warmup_steps: steps over which ``poly`` and ``constant`` begin with lower rates.
        warmup_power: exponent of that, ``rate * (step / warmup_steps) ** warmup_power``.
        clip_norm: largest norm of all gradients together; none: no clipping.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 4e-3
    head_lr: float = 1.0
    weight_decay: float = 1e-2
    momentum: float = 0.9
    schedule: Literal["one_cycle", "poly", "constant"] = "one_cycle"
    power: float = 0.9
    warmup_steps: int = 0
    warmup_power: float = 4.0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        _above("optim.lr", self.lr, 0)
        _above("optim.head_lr", self.head_lr, 0)
        _at_least("optim.weight_decay", self.weight_decay, 0)
        if not 0 <= self.momentum < 1:
            raise ValueError(
                f"config: optim.momentum must be at least 0 and below 1, got {self.momentum}"
            )
        _at_least("optim.power", self.power, 0)
        _at_least("optim.warmup_steps", self.warmup_steps, 0)
        _above("optim.warmup_power", self.warmup_power, 0)
        if self.warmup_steps and self.schedule == "one_cycle":
            raise ValueError(
                f"config: optim.warmup_steps must be 0 with one_cycle, which has its own rise, got "
                f"{self.warmup_steps}"
            )
        if self.clip_norm is not None:
            _above("optim.clip_norm", self.clip_norm, 0)


@dataclass(frozen=True)
class EvalConfig:
    """How networks are scored, and pictures labelled; see ``ocnet.evaluation.InferenceOptions``.

    Attributes:
        batch_size: most pictures shown to the network at once, where they are shown whole.
        mode: ``whole`` pictures, ``slide`` a window over them, or ``ocnet``: whole up to scale 1, sliding above.
        tile: rows and columns of the window, pixels.
        overlap: share of a tile that the next one repeats, 0 to below 1.
        border: the last tile is moved back (``shift``), or padded (``pad``).
        blend: overlapping tiles count equally (``count``), or more at their middle (``gaussian``).
        tile_batch: tiles shown to the network at once.
        scales: factors by which pictures are resized.
        flip: whether mirrored pictures are seen too.
        merge: what is added up over scales and flips: ``mean_logits``, ``sum_logits``, ``exp_logits`` or
            ``mean_probabilities``.
        resize_short: first resize the short side to this, pixels.
        resize_long: first resize the long side to this, pixels.
        resize_to: first resize to these rows and columns, whatever the shape.
        pad_multiple: pad rows and columns to a multiple of this, pixels.
    """

    batch_size: int = 1
    mode: Literal["whole", "slide", "ocnet"] = "whole"
    tile: list[int] = field(default_factory=lambda: [1024, 2048])
    overlap: float = 0.0
    border: Literal["shift", "pad"] = "shift"
    blend: Literal["count", "gaussian"] = "count"
    tile_batch: int = 1
    scales: list[float] = field(default_factory=lambda: [1.0])
    flip: bool = False
    merge: Literal["mean_logits", "sum_logits", "exp_logits", "mean_probabilities"] = "mean_logits"
    resize_short: int | None = None
    resize_long: int | None = None
    resize_to: list[int] | None = None
    pad_multiple: int | None = None

    def __post_init__(self) -> None:
        _at_least("eval.batch_size", self.batch_size, 1)
        _pair("eval.tile", self.tile)
        if self.resize_to is not None:
            _pair("eval.resize_to", self.resize_to)


@dataclass(frozen=True)
class TrainConfig:
    """The loop.

    Attributes:
        run_dir: folder that everything is written into.
        steps: updates of the weights.
        batch_size: pictures per step, of all processes together.
        seed: seed of the weights, of the order of samples, and of dropout.
        device: ``auto`` (CUDA if there is any), ``cpu``, ``cuda`` or ``cuda:<number>``.
        precision: ``auto`` (``bf16`` on a GPU that has it, else ``fp32``), ``fp32`` or ``bf16``.
        channels_last: whether images and weights are laid out with channels last.
        eval_every: steps between evaluations and checkpoints; both also come after the last step.
        log_every: steps between lines of the log; the loss is averaged over them.
        tensorboard: whether the records are also written for TensorBoard.
        resume: ``auto`` continues the run in ``run_dir`` if there is one, ``never`` starts over.
    """

    run_dir: str
    steps: int = 500
    batch_size: int = 8
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: bool = False
    eval_every: int = 100
    log_every: int = 10
    tensorboard: bool = False
    resume: Literal["auto", "never"] = "auto"

    def __post_init__(self) -> None:
        if not self.run_dir:
            raise ValueError("config: train.run_dir must name a folder, got nothing")
        _at_least("train.steps", self.steps, 1)
        _at_least("train.batch_size", self.batch_size, 1)
        _at_least("train.seed", self.seed, 0)
        _at_least("train.eval_every", self.eval_every, 1)
        _at_least("train.log_every", self.log_every, 1)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(
                f"config: train.device must be auto, cpu, cuda or cuda:<number>, got {self.device}"
            )


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a training run does.

    Attributes:
        data: which data set.
        model: which network.
        loss: what is made small.
        optim: how weights are updated.
        eval: how networks are scored.
        train: the loop.
    """

    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


def _at_least(key: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"config: {key} must be at least {least}, got {value}")


def _above(key: str, value: float, bound: float) -> None:
    if not value > bound:
        raise ValueError(f"config: {key} must be greater than {bound}, got {value}")


def _pair(key: str, values: list[int]) -> None:
    if len(values) != 2 or min(values) < 1:
        raise ValueError(f"config: {key} must be rows and columns, at least 1 each, got {values}")
