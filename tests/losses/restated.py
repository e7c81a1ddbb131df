# SPDX-License-Identifier: MIT
"""The losses written out in NumPy, pixel by pixel or with a sorted list of pixels."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EPS = torch.finfo(torch.float64).eps
Array = NDArray[np.float64]


def resized(logits: Tensor, rows: int, columns: int) -> Tensor:
    """Bilinear, by the definition of aligned corners."""
    h, w = logits.shape[2:]
    out = []
    for r in range(rows):
        for c in range(columns):
            fr = r * (h - 1) / (rows - 1)
            fc = c * (w - 1) / (columns - 1)
            r0, c0 = min(int(fr), h - 1), min(int(fc), w - 1)
            r1, c1 = min(r0 + 1, h - 1), min(c0 + 1, w - 1)
            a, b = fr - r0, fc - c0
            upper = (1 - a) * ((1 - b) * logits[:, :, r0, c0] + b * logits[:, :, r0, c1])
            out.append(upper + a * ((1 - b) * logits[:, :, r1, c0] + b * logits[:, :, r1, c1]))
    return torch.stack(out, -1).unflatten(-1, (rows, columns))


@dataclass(frozen=True)
class Mined:
    """Numbers of the pixels that count, their factors, and what their sum is divided by."""

    pixels: list[int]
    factors: list[float]
    total: float

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Differentiable, of logits at the resolution of the labels."""
        rows = logits.movedim(1, -1).flatten(0, 2)
        losses = torch.logsumexp(rows, 1) - rows.gather(1, known(target).reshape(-1, 1))[:, 0]
        summed = logits.sum() * 0
        for pixel, factor in zip(self.pixels, self.factors, strict=True):
            summed = summed + factor * losses[pixel]
        return summed / self.total if self.total else summed


def known(target: Tensor) -> Tensor:
    return target.where(target != 255, 0)


def chances(logits: Tensor, target: Tensor) -> list[float]:
    """Probability of each pixel's own class, of class 0 where it is ignored."""
    rows: Array = logits.detach().movedim(1, -1).flatten(0, 2).double().numpy()
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    return [float(shares[i, y]) for i, y in enumerate(known(target).flatten().tolist())]


def mined(
    logits: Tensor,
    target: Tensor,
    kind: str,
    threshold: float,
    min_kept: int,
    weight: list[float] | None = None,
) -> Mined:
    labels = target.flatten().tolist()
    p = chances(logits, target)
    pool = [i for i, y in enumerate(labels) if y != 255]
    if kind == "openseg" and labels[0] == 255:
        pool.insert(0, 0)
    ascending = sorted(p[i] for i in pool)
    if kind == "ocnet":
        if min_kept >= len(pool):
            kept = pool
        else:
            theta = max(threshold, ascending[min_kept - 1]) if min_kept else threshold
            kept = [i for i in pool if p[i] <= theta]
    elif pool:
        theta = max(threshold, ascending[min(max(1, min_kept), len(pool) - 1)])
        kept = [i for i in pool if p[i] < theta]
    else:
        kept = []
    w = [0.0 if y == 255 else 1.0 if weight is None else weight[y] for y in labels]
    factors = [w[i] for i in kept]
    return Mined(kept, factors, sum(factors) if kind == "ocnet" else float(len(kept)))
