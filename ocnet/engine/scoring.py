# SPDX-License-Identifier: MIT
"""A trained network at work: scores, pictures, submissions, labels of any picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ocnet.data import PictureFiles, SegmentationDataset, write_class_map
from ocnet.engine.attention_pictures import draw_attention
from ocnet.engine.datasets import Split, build_split
from ocnet.engine.inference import inference_options
from ocnet.engine.run import Run
from ocnet.evaluation import (
    Evaluation,
    Predictor,
    classify_picture,
    evaluate,
    write_submission,
    zip_submission,
)
from ocnet.models import attends
from ocnet.report import error_figure
from ocnet.report.style import check_matplotlib

# Larger pictures are reduced before the network shows what it looks at.
_MAX_SIDE = 1024

Progress = Callable[[int, int], None]
"""Called with the number of pictures done, and of all."""


@dataclass(frozen=True)
class Drawing:
    """What is drawn while a network is scored.

    Attributes:
        folder: where.
        predictions: whether the predictions of all pictures are written, as palette PNGs.
        pictures: so many, evenly spread, are drawn with truth, prediction and errors, and with what the
            network looked at.
    """

    folder: Path
    predictions: bool = False
    pictures: int = 0


def score(
    run: Run,
    split: Split,
    *,
    drawing: Drawing | None = None,
    on_progress: Progress | None = None,
) -> Evaluation:
    """Score a network on a split, as its config says.

    Args:
        run: the network.
        split: which pictures.
        drawing: what is drawn on the way.
        on_progress: told how far it is.

    Returns:
        What was counted.

    Raises:
        FileNotFoundError: files of the data set are missing.
        ValueError: a label is no class, an option is out of its range, or the split has no labels.
        RuntimeError: pictures are wanted, and matplotlib is missing; nothing is computed then.
    """
    dataset = build_split(run.config.data, split)
    on_picture = None
    if drawing is not None:
        on_picture = _Drawer(run, dataset, drawing).draw

    def on_batch(done: int) -> None:
        if on_progress is not None:
            on_progress(done, len(dataset))

    return evaluate(
        run.model,
        dataset,
        options=inference_options(run.config.eval),
        batch_size=run.config.eval.batch_size,
        device=run.device,
        on_batch=on_batch,
        on_picture=on_picture,
    )


def submit(
    run: Run, split: Split, out: Path, *, on_progress: Progress | None = None
) -> tuple[int, Path]:
    """Label a split in the values of its label files.

    Args:
        run: the network.
        split: which pictures; they need no labels.
        out: folder to write one palette PNG for each picture into.
        on_progress: told how far it is.

    Returns:
        Number of pictures, and the zip of them, beside the folder.

    Raises:
        FileNotFoundError: files of the data set are missing.
        ValueError: the data set is none of files, an option is out of its range, or the folder has files
            that do not belong to the submission.
    """
    dataset = build_split(run.config.data, split)
    if not isinstance(dataset, PictureFiles):
        raise ValueError(
            f"submit: data.name must be a data set of files, got {run.config.data.name}"
        )
    names = {f"{entry.name}.png" for entry in dataset.entries}
    others = sorted(p.name for p in out.glob("*") if p.name not in names) if out.is_dir() else []
    if others:
        raise ValueError(
            f"submit: folder must have nothing but earlier pictures of this submission, got {others[0]} "
            f"in {out}"
        )
    predictor = _predictor(run)
    for index, entry in enumerate(dataset.entries):
        classes = predictor.classes(run.info.picture_transform(dataset.picture(index)))
        write_submission(out, entry.name, classes.numpy(), dataset.info.label_map, run.info.palette)
        if on_progress is not None:
            on_progress(index + 1, len(dataset))
    return len(dataset), zip_submission(out)


def label_picture(
    run: Run, picture: NDArray[np.uint8], max_side: int | None = None
) -> NDArray[np.int64]:
    """Return the class of every pixel of a picture, which need not be of the data set.

    Args:
        run: the network.
        picture: ``(H, W, 3)`` uint8.
        max_side: where the config has pictures shown whole as they are, those with a longer side are reduced
            to it for the network, pixels; None: no limit. Otherwise the config says how large they are seen.

    Returns:
        ``(H, W)`` int64.

    Raises:
        ValueError: an option is out of its range.
    """
    if inference_options(run.config.eval).plain:
        return classify_picture(
            run.model, run.info.picture_transform, picture, max_side=max_side, device=run.device
        )
    classes: NDArray[np.int64] = (
        _predictor(run).classes(run.info.picture_transform(picture)).numpy()
    )
    return classes


def _predictor(run: Run) -> Predictor:
    return Predictor(
        run.model,
        inference_options(run.config.eval),
        num_classes=run.info.num_classes,
        device=run.device,
        mirror_pairs=run.info.mirror_pairs,
    )


class _Drawer:
    """Writes predictions and pictures of a data set into a folder."""

    def __init__(self, run: Run, dataset: SegmentationDataset, drawing: Drawing) -> None:
        self._run = run
        self._dataset = dataset
        self._folder = drawing.folder
        self._predictions = drawing.predictions
        count = min(drawing.pictures, len(dataset))
        self._chosen = {place * len(dataset) // count for place in range(count)}
        if self._chosen:
            # A missing package must show before the network runs.
            check_matplotlib()
        drawing.folder.mkdir(parents=True, exist_ok=True)

    def draw(self, index: int, name: str, prediction: Tensor, label: Tensor) -> None:
        """Draw one picture."""
        classes = prediction.numpy()
        if self._predictions:
            write_class_map(self._folder / f"{name}.png", classes, self._run.info.palette)
        if index not in self._chosen:
            return
        picture, image = self._shown(index)
        error_figure(
            self._folder / f"{name}_errors.png",
            picture,
            label.numpy(),
            classes,
            self._run.info.class_names,
            self._run.info.palette,
            title=name,
            ignore_index=self._dataset.ignore_index,
        )
        if attends(self._run.model):
            path = self._folder / f"{name}_attention.png"
            draw_attention(path, self._run, picture, classes, max_side=_MAX_SIDE, image=image)

    def _shown(self, index: int) -> tuple[NDArray[np.uint8], Tensor | None]:
        """Return the picture as people see it, and the image of it where it is made of no picture."""
        if isinstance(self._dataset, PictureFiles):
            return self._dataset.picture(index), None
        image = self._dataset[index].image
        levels = image.mean(0).numpy()
        low, high = float(levels.min()), float(levels.max())
        grey = np.rint(255 * (levels - low) / max(high - low, 1e-6)).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2), image
