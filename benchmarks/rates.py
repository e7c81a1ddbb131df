# SPDX-License-Identifier: MIT
"""What the device can do at best, measured once, and the floor that sets for a call."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ocnet.engine.meters import time_call
from ocnet.engine.workload import Call

_COPY_BYTES = {"cuda": 1 << 30, "cpu": 256 << 20}
_MATMUL_SIDE = {"cuda": 8192, "cpu": 2048}


@dataclass(frozen=True)
class Rates:
    """Measured rates of one device and dtype.

    Attributes:
        copy_gb_s: Bytes read and written by a large copy, 1e9 bytes a second.
        matmul_tflop_s: A large square product, 1e12 operations a second. Of a 16-bit dtype the faster
            one of its own and a float32 one: a processor without 16-bit products widens the numbers.
    """

    copy_gb_s: float
    matmul_tflop_s: float

    def floor_ms(self, workload: Call, phase: str) -> tuple[float, str]:
        """Return the least time a phase can take, and what sets it: ``"compute"`` or ``"memory"``."""
        compute = workload.flops(phase) / (self.matmul_tflop_s * 1e9)
        memory = workload.io_bytes(phase) / (self.copy_gb_s * 1e6)
        return (compute, "compute") if compute >= memory else (memory, "memory")


def measure_rates(device: str, dtype: str, *, quick: bool = False) -> Rates:
    """Measure a large copy and a large matrix product.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        dtype: Of the product, as torch names it.
        quick: A 16th of the size, for tests of the program and not for numbers.

    Returns:
        The rates at the 20th percentile of the times, the device at its best.
    """
    place, kind = torch.device(device), getattr(torch, dtype)
    source = torch.zeros(
        _COPY_BYTES[device] // (16 if quick else 1), dtype=torch.uint8, device=place
    )
    target = torch.empty_like(source)
    copy = _best_ms(lambda _: target.copy_(source), place, quick)
    side = _MATMUL_SIDE[device] // (4 if quick else 1)
    kinds = {kind, torch.float32} if kind.itemsize == 2 else {kind}
    matmul = min(_matmul_ms(side, each, place, quick) for each in kinds)
    return Rates(2 * source.numel() / copy / 1e6, 2 * side**3 / matmul / 1e9)


def _matmul_ms(side: int, kind: torch.dtype, place: torch.device, quick: bool) -> float:
    left = torch.randn(side, side, device=place).to(kind)
    product = torch.empty_like(left)
    return _best_ms(lambda _: torch.matmul(left, left, out=product), place, quick)


def _best_ms(call: Callable[[object], object], place: torch.device, quick: bool) -> float:
    call(None)
    return time_call(call, place, budget_s=0.0 if quick else 0.5).p20
