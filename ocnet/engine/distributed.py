# SPDX-License-Identifier: MIT
"""One training run on several processes, as ``torchrun`` starts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ocnet import _env


@dataclass(frozen=True)
class World:
    """The processes of a run; by default there is one.

    Attributes:
        rank: number of this process.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return which of ``count`` things this process takes."""
        return range(self.rank, count, self.size)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of the tensors that all processes hand in, on the device it is on."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, values: Tensor) -> Tensor:
        """Return the elementwise maximum of the tensors that all processes hand in."""
        if self.size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def all_of(self, value: Any) -> list[Any]:
        """Return what all processes hand in, in the order of their ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def same_buffers(self, model: nn.Module) -> None:
        """Give the buffers of all processes the values of the first one's."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return the network whose gradients are means over the processes."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model, [device] if device.type == "cuda" else None)


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """Join the processes that ``torchrun`` started, and leave them at the end.

    Args:
        device: of the config. Of CUDA devices each process takes its own, unless one is numbered.

    Yields:
        The world, one process where there was no ``torchrun``, and the device of this process.

    Raises:
        ValueError: there are more processes than CUDA devices.
    """
    launched = _env.launched()
    if launched is None or launched[1] == 1:
        yield World(), device
        return
    rank, size, local_rank = launched
    if str(device) == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"train: processes must have a CUDA device each, got process {local_rank} of this machine "
                f"with {torch.cuda.device_count()} devices"
            )
        device = torch.device("cuda", local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank, size), device
    finally:
        dist.destroy_process_group()
