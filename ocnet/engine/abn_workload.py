# SPDX-License-Identifier: MIT
"""One call of batch norm with its activation as sizes, and the op as a way to compute it."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ocnet.engine.workload import FORWARD, Call, Form, Noise, in_phase
from ocnet.ops import inplace_abn
from ocnet.ops.inplace_abn.problem import accumulator

SLOPE = 0.01  # of the leaky ReLU
# Of each channel: weight, bias and running statistics in, the latter and the variance out; backward,
# weight, bias and variance in, two gradients out.
_VECTORS_FORWARD, _VECTORS_BACKWARD = 7, 5


@dataclass(frozen=True)
class ABNWorkload(Call):
    """Sizes and kinds of one training call of batch norm with leaky ReLU, on maps of ``C`` channels.

    Attributes:
        N: Batch size.
        H: Rows of the maps.
        W: Columns of the maps.
        dtype: ``"float32"``, ``"bfloat16"``, ...
        device: ``"cpu"`` or ``"cuda"``.
        layout: ``"nchw"`` or ``"channels_last"``.
        C: Channels.
        residual: Whether a map is added before the activation.
        op: Tells its records from those of other ops.
    """

    layout: str = field(default="channels_last", kw_only=True)
    C: int = 256
    residual: bool = False
    op: str = "inplace_abn"

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the tensors that the op takes and gives gradients to, in order."""
        return ("x", "weight", "bias", *(["residual"] if self.residual else []))

    @property
    def passing(self) -> tuple[str, ...]:
        """The map: a convolution keeps its input, not its result. A residual is an input of others."""
        return ("x",)

    @cached_property
    def options(self) -> dict[str, Any]:
        """The running statistics, as any layer in training has them; each call moves them."""
        mean = torch.zeros(self.C, dtype=accumulator(self.torch_dtype), device=self.device)
        return {"running_mean": mean, "running_var": torch.ones_like(mean)}

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels."""
        return (self.C,)

    @property
    def weights(self) -> int:
        """None: there is no softmax."""
        return 0

    def small(self) -> "ABNWorkload":
        """Return a call of the same kind that costs nothing."""
        return replace(self, N=1, H=4, W=4, C=16)

    def io_bytes(self, phase: str) -> int:
        """Return the least bytes a phase must move: inputs read once, results written once.

        That is a channel which stays on chip between statistics and use. The backward pass reads the
        output and its gradient and writes a gradient; a residual is read in both and has a gradient.
        """
        return self._bytes(phase, 2 + self.residual, 3 + 2 * self.residual)

    def streamed_bytes(self, phase: str) -> int:
        """Return the bytes of two passes each way: statistics, or sums, and then the maps again."""
        return self._bytes(phase, 3 + self.residual, 5 + 3 * self.residual)

    def flops(self, phase: str) -> int:
        """Return the operations of a phase, about ten for each number: never what limits it.

        Forward: mean 1, deviations 3, normalising 3, activation 1. Backward: inverse 2, derivative 1,
        sums 3, gradient 4. A residual adds one to each.
        """
        return self._elements * in_phase(phase, 8 + self.residual, 10 + self.residual)

    def result_bytes(self, phase: str) -> int:
        """Return the bytes of what a phase hands back: the output, and the gradients."""
        maps = self._elements * self.itemsize
        if phase == FORWARD:
            return maps
        return (2 + self.residual) * maps + 2 * self._vector_bytes

    def inputs(self, seed: int = 0) -> tuple[Tensor, ...]:
        """Make a map as a convolution leaves it, weight and bias, a residual, a gradient.

        Weights are positive, as nearly all are in trained networks.
        """
        noise = Noise(self, seed)
        x = noise.plain(self.C, self.H, self.W)
        weight, bias = 1 + 0.1 * noise.vector(self.C), 0.2 * noise.vector(self.C)
        others = [noise.plain(self.C, self.H, self.W) for _ in range(1 + self.residual)]
        return (x, weight, bias, *others)

    def _bytes(self, phase: str, forward: int, backward: int) -> int:
        maps = self._elements * self.itemsize
        return in_phase(
            phase,
            forward * maps + _VECTORS_FORWARD * self._vector_bytes,
            backward * maps + _VECTORS_BACKWARD * self._vector_bytes,
        )

    @property
    def _elements(self) -> int:
        return self.N * self.L * self.C

    @property
    def _vector_bytes(self) -> int:
        return self.C * accumulator(self.torch_dtype).itemsize


def normalised(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, **options: Any
) -> Tensor:
    """Call the op."""
    return inplace_abn(x, weight, bias, activation_param=SLOPE, residual=residual, **options)


FORMS = {"fused": Form("fused", normalised, provider="ocnet.engine.abn_workload")}
