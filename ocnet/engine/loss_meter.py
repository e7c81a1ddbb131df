# SPDX-License-Identifier: MIT
"""Mean loss and throughput between two records of a run."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ocnet.engine.distributed import World
from ocnet.engine.records import Record


class LossMeter:
    """Mean loss and throughput since the last record, without waiting for the GPU at each step.

    Args:
        device: where losses are.
        world: the processes of the run, whose losses are averaged.
    """

    def __init__(self, device: torch.device, world: World = World()) -> None:  # noqa: B008
        self._device = device
        self._world = world
        self.restart()

    def restart(self) -> None:
        """Begin anew."""
        self._sum = torch.zeros((), dtype=torch.float64, device=self._device)
        self._first_bad = torch.zeros((), dtype=torch.int64, device=self._device)
        self._bad_loss = torch.zeros((), dtype=torch.float64, device=self._device)
        self._steps = 0
        self._images = 0
        self._start = time.perf_counter()

    def add(self, step: int, loss: Tensor, images: int) -> None:
        """Count one step.

        Args:
            step: its number.
            loss: its loss, a scalar.
            images: pictures of it, on this process.
        """
        bad = (self._first_bad == 0) & ~torch.isfinite(loss)
        self._first_bad = torch.where(bad, step, self._first_bad)
        self._bad_loss = torch.where(bad, loss.double(), self._bad_loss)
        self._sum += loss
        self._steps += 1
        self._images += images

    def read(self) -> Record:
        """Return ``loss`` and ``images_per_s`` of all processes.

        Raises:
            RuntimeError: a loss was not finite.
        """
        here = float(self._bad_loss)
        first_bad = int(self._world.largest(self._first_bad))
        loss = float(self._world.total(self._sum)) / self._steps / self._world.size
        if first_bad:
            raise RuntimeError(
                f"train: loss must stay finite, got {here if here != 0 else loss} at step {first_bad} "
                f"(a smaller optim.lr, or optim.clip_norm, may help)"
            )
        # Reading the loss has waited for the GPU, so the time is that of the work.
        elapsed = time.perf_counter() - self._start
        return {"loss": loss, "images_per_s": self._images * self._world.size / elapsed}
