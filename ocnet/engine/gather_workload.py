# SPDX-License-Identifier: MIT
"""One call of spatial gathering as sizes, and the ways to compute it."""

from dataclasses import dataclass, field

from torch import Tensor

from ocnet.engine.workload import FORWARD, Call, Form, Noise, in_phase
from ocnet.ops import spatial_gather
from ocnet.ops.spatial_gather.flops import backward_flops, forward_flops
from ocnet.ops.spatial_gather.reference import naive_gather


@dataclass(frozen=True)
class GatherWorkload(Call):
    """Sizes and kinds of one call of spatial gathering; docs/architecture.md has the letters.

    Attributes:
        N: Batch size.
        H: Rows of the maps.
        W: Columns of the maps.
        dtype: ``"float32"``, ``"bfloat16"``, ...
        device: ``"cpu"`` or ``"cuda"``.
        layout: ``"nchw"`` or ``"channels_last"``.
        C: Channels of the features.
        K: Regions.
        op: Tells its records from those of attention.
    """

    layout: str = field(default="channels_last", kw_only=True)
    C: int = 512
    K: int = 19
    op: str = "spatial_gather"

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the tensors that the op takes, in order."""
        return "features", "logits"

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the features, and regions."""
        return self.C, self.K

    @property
    def weights(self) -> int:
        """Softmax weights, which the plain formula holds."""
        return self.N * self.L * self.K

    def small(self) -> "GatherWorkload":
        """Return a call of the same kind that costs nothing."""
        return GatherWorkload(N=1, H=4, W=4, C=16, K=3, dtype=self.dtype, device=self.device)

    def io_bytes(self, phase: str) -> int:
        """Return the least bytes a phase must move: inputs read once, results written once.

        The backward pass reads features, logits, the context and its gradient, and writes two
        gradients.
        """
        maps, context = self.N * self.L * (self.C + self.K), self.N * self.C * self.K
        sums = 4 * self.N * self.K
        forward = (maps + context) * self.itemsize + sums
        return in_phase(phase, forward, 2 * (maps + context) * self.itemsize + sums)

    def flops(self, phase: str) -> int:
        """Return the multiply-adds of a phase, counted as two operations each."""
        sizes = self.N, self.L, self.C, self.K
        return in_phase(phase, forward_flops(*sizes), backward_flops(*sizes))

    def result_bytes(self, phase: str) -> int:
        """Return the bytes of what a phase hands back: the context, and the gradients."""
        context = self.N * self.C * self.K * self.itemsize
        gradients = self.N * self.L * (self.C + self.K) * self.itemsize
        return context if phase == FORWARD else context + gradients

    def inputs(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Make features as an activation leaves them, logits, and a gradient of the context."""
        noise = Noise(self, seed)
        features = noise.activated(self.C, self.H, self.W)
        logits = noise.plain(self.K, self.H, self.W, factor=2)
        return features, logits, noise.plain(self.C, self.K, 1)


_HERE = "ocnet.engine.gather_workload"
FORMS = {
    form.name: form
    for form in (
        Form("fused", spatial_gather, provider=_HERE),
        Form("naive", naive_gather, builds_matrix=lambda workload: True, provider=_HERE),
    )
}
