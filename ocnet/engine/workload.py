# SPDX-License-Identifier: MIT
"""One call of attention as sizes, and the ways to compute it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ocnet.ops import oc_attention
from ocnet.ops.oc_attention.problem import DTYPES
from ocnet.ops.oc_attention.reference import naive_attention

FORWARD, BACKWARD, STEP = "forward", "backward", "step"
PHASES = (FORWARD, BACKWARD, STEP)

_DTYPES = tuple(str(dtype).removeprefix("torch.") for dtype in DTYPES)
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Workload:
    """Sizes and kinds of one call of attention; docs/architecture.md has the letters.

    Attributes:
        N: Batch size.
        H: Rows of the query map.
        W: Columns of the query map.
        Hk: Rows of the key map; 0 for the query's.
        Wk: Columns of the key map; 0 for the query's.
        E: Channels of query and key.
        Ev: Channels of value.
        dtype: ``"float32"``, ``"bfloat16"``, ...
        device: ``"cpu"`` or ``"cuda"``.
        layout: ``"nchw"`` or ``"channels_last"``.
        shared: Whether query and key are one tensor, as in OCNet.
    """

    N: int
    H: int
    W: int
    E: int = 256
    Ev: int = 256
    Hk: int = 0
    Wk: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    layout: str = "nchw"
    shared: bool = True

    def __post_init__(self) -> None:
        """Refuse sizes that make no call."""
        if self.dtype not in _DTYPES:
            raise ValueError(f"Workload: dtype must be of {', '.join(_DTYPES)}, got {self.dtype}")
        if min(self.N, self.H, self.W, self.E, self.Ev) < 1:
            raise ValueError(f"Workload: sizes must be at least 1, got {self}")
        if (self.Hk == 0) != (self.Wk == 0) or (self.shared and self.Hk):
            raise ValueError(
                f"Workload: Hk and Wk must be given together, and only without shared keys, got {self}"
            )

    @property
    def L(self) -> int:
        """Query tokens."""
        return self.H * self.W

    @property
    def S(self) -> int:
        """Key tokens."""
        return self.Hk * self.Wk if self.Hk else self.L

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.torch_dtype.itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch names it."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def io_bytes(self, phase: str) -> int:
        """Return the least bytes a phase must move: inputs read once, results written once.

        The backward pass reads query, key, value, output and its gradient and writes the gradients.
        """
        queries = self.N * self.L * self.E
        keys = 0 if self.shared else self.N * self.S * self.E
        values, outputs = self.N * self.S * self.Ev, self.N * self.L * self.Ev
        sums = 4 * self.N * self.L
        forward = (queries + keys + values + outputs) * self.itemsize + sums
        backward = (2 * (queries + keys + values) + 2 * outputs) * self.itemsize + sums
        return {FORWARD: forward, BACKWARD: backward, STEP: forward + backward}[phase]

    def flops(self, phase: str) -> int:
        """Return the multiply-adds of a phase, counted as two operations each.

        Forward: the scores and the weighted sum. Backward: the scores again, their gradient, and one
        product for each of the three gradients; with shared keys the symmetric form, which forms one
        gradient of query and key from two products of value width.
        """
        pair = 2 * self.N * self.L * self.S
        forward = pair * (self.E + self.Ev)
        backward = pair * (3 * self.E + 2 * self.Ev)
        if self.shared:
            backward = min(backward, pair * (2 * self.E + 3 * self.Ev))
        return {FORWARD: forward, BACKWARD: backward, STEP: forward + backward}[phase]

    def result_bytes(self, phase: str) -> int:
        """Return the bytes of what a phase hands back: the output, and the gradients."""
        output = self.N * self.L * self.Ev * self.itemsize
        queries = self.N * self.L * self.E
        keys = 0 if self.shared else self.N * self.S * self.E
        gradients = (queries + keys + self.N * self.S * self.Ev) * self.itemsize
        return output if phase == FORWARD else output + gradients

    def inputs(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Make query, key and value as the key transform leaves them, and a gradient of the output.

        Features come through leaky ReLU; with plain normal noise the softmax of shared query and key
        would sit on the diagonal.
        """
        generator = torch.Generator().manual_seed(seed)

        def noise(channels: int, rows: int, columns: int) -> Tensor:
            return torch.randn(self.N, channels, rows, columns, generator=generator)

        def placed(cpu_map: Tensor) -> Tensor:
            dense = (
                torch.channels_last if self.layout == "channels_last" else torch.contiguous_format
            )
            return cpu_map.to(self.device, self.torch_dtype).contiguous(memory_format=dense)

        rows, columns = (self.Hk, self.Wk) if self.Hk else (self.H, self.W)
        query = placed(F.leaky_relu_(noise(self.E, self.H, self.W), 0.01))
        key = query if self.shared else placed(F.leaky_relu_(noise(self.E, rows, columns), 0.01))
        value = placed(F.leaky_relu_(noise(self.Ev, rows, columns), 0.01))
        return query, key, value, placed(noise(self.Ev, self.H, self.W))


def _no_refusal(workload: Workload) -> str:
    return ""


def _never(workload: Workload) -> bool:
    return False


@dataclass(frozen=True)
class Form:
    """One way to compute attention.

    Attributes:
        name: Its name in tables.
        attention: The function of query, key and value maps.
        refuses: A sentence when the form cannot take a workload, else an empty string.
        builds_matrix: Whether it holds ``L x S`` weights for a workload; used to predict its memory.
        provider: Module with a ``FORMS`` table that has this form, for the fresh process to import.
    """

    name: str
    attention: Attention
    refuses: Callable[[Workload], str] = _no_refusal
    builds_matrix: Callable[[Workload], bool] = _never
    provider: str = "ocnet.engine.workload"

    def predicted_bytes(self, workload: Workload, phase: str) -> int:
        """Predict the peak beyond the inputs: results, and two (forward) or three matrices."""
        results = workload.result_bytes(phase)
        if not self.builds_matrix(workload):
            return results
        matrices = 2 if phase == FORWARD else 3
        return results + matrices * workload.N * workload.L * workload.S * workload.itemsize


def _sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Call torch's kernel as it wants to be called: four axes, channels last in memory.

    With other strides, or with three axes, torch quietly builds the matrix instead.
    """
    n, _, h, w = query.shape
    tokens = query.flatten(2).mT.contiguous()[:, None]
    keys = tokens if key is query else key.flatten(2).mT.contiguous()[:, None]
    values = value.flatten(2).mT.contiguous()[:, None]
    out = F.scaled_dot_product_attention(tokens, keys, values)[:, 0]
    return out.mT.reshape(n, value.shape[1], h, w)


def _sdpa_builds_matrix(workload: Workload) -> bool:
    return workload.device == "cpu" and workload.Ev != workload.E


FORMS = {
    form.name: form
    for form in (
        Form("fused", oc_attention),
        Form("naive", naive_attention, builds_matrix=lambda workload: True),
        Form("sdpa", _sdpa, builds_matrix=_sdpa_builds_matrix),
    )
}
