# SPDX-License-Identifier: MIT
"""Calls of ``spatial_gather``: their sizes, tensors made for them, and what they should give."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ocnet.ops import spatial_gather
from ocnet.ops.spatial_gather.reference import naive_gather
from ocnet.testing.inputs import LAYOUTS


@dataclass(frozen=True)
class GatherCase:
    """One legal call.

    Attributes:
        batch, channels, regions: Images, channels of the features, regions.
        size: ``(H, W)`` of both maps.
        dtype: Of both maps.
        layout: Of both maps, see ``AttentionCase``.
        scale: Factor of the logits.
        spread: Standard deviation of the logits: 1 makes weights alike, 8 a few large ones.
    """

    batch: int = 2
    channels: int = 16
    regions: int = 5
    size: tuple[int, int] = (5, 7)
    dtype: torch.dtype = torch.float32
    layout: str = "nchw"
    scale: float = 1.0
    spread: float = 2.0

    def __str__(self) -> str:
        """Return a readable test id."""
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{dtype}-{self.layout}-N{self.batch}-C{self.channels}-K{self.regions}"
            f"-{self.size[0]}x{self.size[1]}"
        )


@dataclass(frozen=True)
class GatherInputs:
    """Leaf maps for one call."""

    features: Tensor
    logits: Tensor
    grad_out: Tensor
    scale: float


@dataclass(frozen=True)
class GatherResults:
    """Output and gradients of one call."""

    out: Tensor
    grad_features: Tensor
    grad_logits: Tensor

    def named(self) -> dict[str, Tensor]:
        """Return them by name."""
        return dict(vars(self))


def _map(case: GatherCase, channels: int, spread: float, g: torch.Generator) -> Tensor:
    h, w = case.size
    margin = 2 if case.layout == "cropped" else 0
    images = 1 if case.layout == "expanded" else case.batch
    shape = (images, channels, h + margin, w + margin)
    data = (spread * torch.randn(shape, generator=g, dtype=torch.float64)).to(case.dtype)
    if case.layout == "channels_last":
        return data.contiguous(memory_format=torch.channels_last)
    if case.layout == "cropped":
        return data[:, :, 1:-1, 1:-1]
    return data.expand(case.batch, -1, -1, -1)


def make_gather_inputs(case: GatherCase, seed: int = 0, device: str = "cpu") -> GatherInputs:
    """Draw the maps of a case; the same seed gives the same numbers on every device."""
    g = torch.Generator().manual_seed(seed)

    def leaf(t: Tensor) -> Tensor:
        return t.detach().to(device).requires_grad_()

    features, logits = _map(case, case.channels, 1.0, g), _map(case, case.regions, case.spread, g)
    shape = (case.batch, case.channels, case.regions, 1)
    grad_out = torch.randn(shape, generator=g, dtype=torch.float64).to(case.dtype)
    return GatherInputs(leaf(features), leaf(logits), grad_out.to(device), case.scale)


def random_gather_cases(
    count: int, seed: int, dtypes: tuple[torch.dtype, ...], max_side: int = 23
) -> Iterator[GatherCase]:
    """Draw legal calls: odd sizes, every layout and dtype."""
    rng = random.Random(seed)

    def side() -> int:
        return rng.choice((1, 2, 3, 5, 7, rng.randint(1, max_side)))

    for _ in range(count):
        yield GatherCase(
            batch=rng.choice((1, 1, 2, 3)),
            channels=rng.choice((1, 2, 3, 8, 16, 19, 33, 64, 65, rng.randint(1, 150))),
            regions=rng.choice((1, 2, 5, 16, 19, 33, 64, 65, rng.randint(1, 150))),
            size=(side(), side()),
            dtype=rng.choice(dtypes),
            layout=rng.choice(LAYOUTS),
            scale=rng.choice((1.0, 1.0, 0.0, 0.3, -0.5)),
            spread=rng.choice((0.1, 1.0, 8.0)),
        )


def _run(gather: Callable[[Tensor, Tensor, float], Tensor], inputs: GatherInputs) -> GatherResults:
    out = gather(inputs.features, inputs.logits, inputs.scale)
    grads = torch.autograd.grad(out, (inputs.features, inputs.logits), inputs.grad_out)
    return GatherResults(out.detach(), *grads)


def run_gather(inputs: GatherInputs, backend: str) -> GatherResults:
    """Run the op, forward and backward."""
    return _run(lambda f, z, scale: spatial_gather(f, z, scale, backend=backend), inputs)


def _plain_copy(inputs: GatherInputs, dtype: torch.dtype, reverse: bool) -> GatherInputs:
    def leaf(t: Tensor) -> Tensor:
        dense = t.detach().to(dtype).contiguous()
        return (dense.flip(2, 3) if reverse else dense).requires_grad_()

    return GatherInputs(
        leaf(inputs.features), leaf(inputs.logits), inputs.grad_out.to(dtype), inputs.scale
    )


def gather_oracle(inputs: GatherInputs) -> GatherResults:
    """Run the plain formula in float64 on the very numbers of the inputs."""
    return _run(naive_gather, _plain_copy(inputs, torch.float64, reverse=False))


def eager_gathers(inputs: GatherInputs) -> tuple[GatherResults, GatherResults]:
    """Run the plain formula in the dtype of the inputs, with the positions in order and in reverse.

    The difference between the two is what the order of summation alone makes; it is what bounds
    float64, where the first equals the oracle.
    """
    dtype = inputs.features.dtype
    forward = _run(naive_gather, _plain_copy(inputs, dtype, reverse=False))
    back = _run(naive_gather, _plain_copy(inputs, dtype, reverse=True))
    return forward, GatherResults(
        back.out, back.grad_features.flip(2, 3), back.grad_logits.flip(2, 3)
    )


def gather_magnitudes(inputs: GatherInputs) -> GatherResults:
    """Sum the absolute values of the terms that each result is the sum of.

    What rounding in a sum is relative to: the gradients of the logits can be far smaller where the
    softmax is peaked.
    """
    plain = _plain_copy(inputs, torch.float64, reverse=False)
    features, logits = (t.detach().flatten(2) for t in (plain.features, plain.logits))
    grad = plain.grad_out.squeeze(-1).abs()
    weights = torch.softmax(plain.scale * logits, dim=-1)
    out = features.abs() @ weights.mT
    row = (grad * out).sum(1).unsqueeze(-1)
    scores = abs(plain.scale) * weights * (grad.mT @ features.abs() + row)
    return GatherResults(
        out.unsqueeze(-1),
        (grad @ weights).reshape(plain.features.shape),
        scores.reshape(plain.logits.shape),
    )
