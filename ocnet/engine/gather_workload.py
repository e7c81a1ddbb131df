# SPDX-License-Identifier: MIT
"""One call of spatial gathering as sizes, and the ways to compute it."""

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ocnet.engine.workload import BACKWARD, FORWARD, STEP, Form, check_dtype, placed
from ocnet.ops import spatial_gather
from ocnet.ops.spatial_gather.flops import backward_flops, forward_flops
from ocnet.ops.spatial_gather.reference import naive_gather


@dataclass(frozen=True)
class GatherWorkload:
    """Sizes and kinds of one call of spatial gathering; docs/architecture.md has the letters.

    Attributes:
        N: Batch size.
        H: Rows of the maps.
        W: Columns of the maps.
        C: Channels of the features.
        K: Regions.
        dtype: ``"float32"``, ``"bfloat16"``, ...
        device: ``"cpu"`` or ``"cuda"``.
        layout: ``"nchw"`` or ``"channels_last"``.
        op: Tells its records from those of attention.
    """

    arguments: ClassVar[tuple[str, ...]] = ("features", "logits")

    N: int
    H: int
    W: int
    C: int = 512
    K: int = 19
    dtype: str = "float32"
    device: str = "cpu"
    layout: str = "channels_last"
    op: str = "spatial_gather"

    def __post_init__(self) -> None:
        """Refuse sizes that make no call."""
        check_dtype("GatherWorkload", self.dtype)
        if min(self.N, self.H, self.W, self.C, self.K) < 1:
            raise ValueError(f"GatherWorkload: sizes must be at least 1, got {self}")

    @property
    def L(self) -> int:
        """Positions."""
        return self.H * self.W

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.torch_dtype.itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch names it."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def channels(self) -> int:
        """Channels of the features."""
        return self.C

    @property
    def weights(self) -> int:
        """Softmax weights, which the plain formula holds."""
        return self.N * self.L * self.K

    def on(self, device: str, dtype: str) -> "GatherWorkload":
        """Return the same call on another device, in another dtype."""
        return replace(self, device=device, dtype=dtype)

    def small(self) -> "GatherWorkload":
        """Return a call of the same kind that costs nothing."""
        return GatherWorkload(N=1, H=4, W=4, C=16, K=3, dtype=self.dtype, device=self.device)

    def to_record(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)

    def io_bytes(self, phase: str) -> int:
        """Return the least bytes a phase must move: inputs read once, results written once.

        The backward pass reads features, logits, the context and its gradient, and writes two
        gradients.
        """
        maps, context = self.N * self.L * (self.C + self.K), self.N * self.C * self.K
        sums = 4 * self.N * self.K
        forward = (maps + context) * self.itemsize + sums
        backward = 2 * (maps + context) * self.itemsize + sums
        return {FORWARD: forward, BACKWARD: backward, STEP: forward + backward}[phase]

    def flops(self, phase: str) -> int:
        """Return the multiply-adds of a phase, counted as two operations each."""
        forward = forward_flops(self.N, self.L, self.C, self.K)
        backward = backward_flops(self.N, self.L, self.C, self.K)
        return {FORWARD: forward, BACKWARD: backward, STEP: forward + backward}[phase]

    def result_bytes(self, phase: str) -> int:
        """Return the bytes of what a phase hands back: the context, and the gradients."""
        context = self.N * self.C * self.K * self.itemsize
        gradients = self.N * self.L * (self.C + self.K) * self.itemsize
        return context if phase == FORWARD else context + gradients

    def inputs(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Make features as an activation leaves them, logits, and a gradient of the context."""
        generator = torch.Generator().manual_seed(seed)

        def noise(channels: int, rows: int, columns: int) -> Tensor:
            return torch.randn(self.N, channels, rows, columns, generator=generator)

        features = F.leaky_relu_(noise(self.C, self.H, self.W), 0.01)
        logits = 2 * noise(self.K, self.H, self.W)
        grad_out = noise(self.C, self.K, 1)
        return placed(features, self), placed(logits, self), placed(grad_out, self)


_HERE = "ocnet.engine.gather_workload"
FORMS = {
    form.name: form
    for form in (
        Form("fused", spatial_gather, provider=_HERE),
        Form("naive", naive_gather, builds_matrix=lambda workload: True, provider=_HERE),
    )
}
