# SPDX-License-Identifier: MIT
"""Endless shuffled batches that can be taken up again at any point."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ocnet.data.base import Sample, SegmentationDataset


@dataclass(frozen=True)
class Batch:
    """Samples of one size, stacked.

    Attributes:
        images: ``(N, C, H, W)`` float32.
        labels: ``(N, H, W)`` int64.
        names: one per sample.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which copies to a GPU run on their own."""
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.names)


class Loader:
    """Endless stream of shuffled training batches.

    The stream is a function of ``seed`` alone: epoch ``e`` goes through all samples once, in an
    order drawn from ``(seed, e)``, and the augmentation of the ``d``-th draw comes from
    ``(seed, d)``. A batch may span two epochs. Neither the number of workers nor the global
    random state has any part in it, so :attr:`position` is all there is to resume from. Of several
    processes each takes an equal run of every batch, so their number has no part in it either.

    Args:
        dataset: all its draws must have one size.
        batch_size: samples per batch of all processes together, at least 1.
        seed: 0 or more.
        workers: processes that prepare batches ahead; 0 prepares them in this process.
        pin_memory: whether batches come in page-locked memory, for training on a GPU.
        rank: number of this process.
        processes: number of processes.

    Raises:
        ValueError: an argument is out of its range, or the processes cannot share a batch; while iterating,
            what the data set raises, or samples of a batch that differ in size.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        batch_size: int,
        seed: int,
        workers: int = 0,
        pin_memory: bool = False,
        *,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("workers", workers, 0),
        ):
            if value < least:
                raise ValueError(f"Loader: {name} must be at least {least}, got {value}")
        if batch_size % processes:
            raise ValueError(
                f"Loader: batch_size must be a multiple of the number of processes, {processes}, got "
                f"{batch_size}"
            )
        self._draws = _Draws(dataset, seed)
        self._batch_size = batch_size
        self._share = batch_size // processes
        self._rank = rank
        self._workers = workers
        self._pin_memory = pin_memory
        self.position = 0
        """Batches handed out so far. Set it before iterating to continue from there."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches for ever, from :attr:`position` on."""
        loader = DataLoader(
            self._draws,
            batch_size=self._share,
            sampler=_Numbers(
                self.position, self._batch_size, self._rank * self._share, self._share
            ),
            num_workers=self._workers,
            collate_fn=_stack,
            worker_init_fn=_single_threaded,
            pin_memory=self._pin_memory,
            # Without its own generator the DataLoader would take numbers from the global one.
            generator=torch.Generator().manual_seed(0),
        )
        for batch in loader:
            if isinstance(batch, Exception):
                raise batch
            self.position += 1
            yield batch


class _Draws(Dataset["Sample | Exception"]):
    """Maps the running number of a draw to its sample.

    A sample that cannot be had comes back as the exception: raised in a worker, its one sentence
    would arrive wrapped in two tracebacks.
    """

    def __init__(self, dataset: SegmentationDataset, seed: int) -> None:
        self._dataset = dataset
        self._seed = seed
        self._epoch = -1
        self._order: list[int] = []

    def __getitem__(self, number: int) -> Sample | Exception:
        epoch, place = divmod(number, len(self._dataset))
        if epoch != self._epoch:
            shuffle = torch.Generator().manual_seed(mix_seeds(self._seed, 2 * epoch))
            self._order = torch.randperm(len(self._dataset), generator=shuffle).tolist()
            self._epoch = epoch
        augment = torch.Generator().manual_seed(mix_seeds(self._seed, 2 * number + 1))
        try:
            return self._dataset.draw(self._order[place], augment)
        except (ValueError, TypeError, OSError) as error:
            return error


class _Numbers(Sampler[int]):
    """Counts up for ever: of each batch from ``first`` on, ``share`` numbers that begin at ``offset``."""

    def __init__(self, first: int, batch_size: int, offset: int, share: int) -> None:
        self._first = first
        self._batch_size = batch_size
        self._part = range(offset, offset + share)

    def __iter__(self) -> Iterator[int]:
        for batch in itertools.count(self._first):
            for place in self._part:
                yield batch * self._batch_size + place


def mix_seeds(seed: int, stream: int) -> int:
    """Return a 63-bit seed for stream number ``stream``; neighbours are unrelated."""
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0]) >> 1


def _stack(draws: list[Sample | Exception]) -> Batch | Exception:
    samples = []
    for draw in draws:
        if isinstance(draw, Exception):
            return draw
        samples.append(draw)
    shapes = {tuple(sample.image.shape) for sample in samples}
    if len(shapes) > 1:
        return ValueError(
            f"Loader: samples of a batch must have one size, got {sorted(shapes)} "
            f"(a crop makes them equal)"
        )
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        labels=torch.stack([sample.label for sample in samples]),
        names=tuple(sample.name for sample in samples),
    )


def _single_threaded(worker: int) -> None:
    """Keep OpenCV to one thread per worker; torch does so by itself."""
    cv2.setNumThreads(0)
