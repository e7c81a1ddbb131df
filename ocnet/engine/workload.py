# SPDX-License-Identifier: MIT
"""One call of an op as sizes, and the ways to compute it; here those of attention."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ocnet.ops import oc_attention
from ocnet.ops.oc_attention.flops import backward_flops, forward_flops
from ocnet.ops.oc_attention.problem import DTYPES
from ocnet.ops.oc_attention.reference import naive_attention

FORWARD, BACKWARD, STEP = "forward", "backward", "step"
PHASES = (FORWARD, BACKWARD, STEP)

_DTYPES = tuple(str(dtype).removeprefix("torch.") for dtype in DTYPES)


class Call(Protocol):
    """Sizes and kinds of one call of an op: what measuring needs to know of it.

    Attributes:
        arguments: Names of the tensors that the op takes, in order.
    """

    arguments: ClassVar[tuple[str, ...]]

    @property
    def N(self) -> int:
        """Batch size."""
        ...

    @property
    def H(self) -> int:
        """Rows of the map."""
        ...

    @property
    def W(self) -> int:
        """Columns of the map."""
        ...

    @property
    def L(self) -> int:
        """Positions of the map."""
        ...

    @property
    def channels(self) -> int:
        """Channels of the first argument."""
        ...

    @property
    def dtype(self) -> str:
        """Name of the dtype of all tensors."""
        ...

    @property
    def device(self) -> str:
        """``"cpu"`` or ``"cuda"``."""
        ...

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        ...

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch names it."""
        ...

    @property
    def weights(self) -> int:
        """Softmax weights, which the plain formula holds."""
        ...

    def io_bytes(self, phase: str) -> int:
        """Return the least bytes a phase must move."""
        ...

    def flops(self, phase: str) -> int:
        """Return the multiply-adds of a phase, counted as two operations each."""
        ...

    def result_bytes(self, phase: str) -> int:
        """Return the bytes of what a phase hands back."""
        ...

    def inputs(self, seed: int = 0) -> tuple[Tensor, ...]:
        """Make the arguments, and then a gradient of the output."""
        ...

    def on(self, device: str, dtype: str) -> "Call":
        """Return the same call on another device, in another dtype."""
        ...

    def small(self) -> "Call":
        """Return a call of the same kind that costs nothing."""
        ...

    def to_record(self) -> dict[str, Any]:
        """Return plain values, which :func:`ocnet.engine.measure.call_of` reads."""
        ...


def check_dtype(kind: str, dtype: str) -> None:
    """Refuse a name that is no dtype of the ops.

    Raises:
        ValueError: It is none.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"{kind}: dtype must be of {', '.join(_DTYPES)}, got {dtype}")


def placed(cpu_map: Tensor, call: Any) -> Tensor:
    """Return a map in the device, dtype and layout of a call."""
    dense = torch.channels_last if call.layout == "channels_last" else torch.contiguous_format
    return cpu_map.to(call.device, call.torch_dtype).contiguous(memory_format=dense)


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

    arguments: ClassVar[tuple[str, ...]] = ("query", "key", "value")

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
        check_dtype("Workload", self.dtype)
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

    @property
    def channels(self) -> int:
        """Channels of query and key."""
        return self.E

    @property
    def weights(self) -> int:
        """Softmax weights, which the plain formula holds."""
        return self.N * self.L * self.S

    def on(self, device: str, dtype: str) -> "Workload":
        """Return the same call on another device, in another dtype."""
        return replace(self, device=device, dtype=dtype)

    def small(self) -> "Workload":
        """Return a call of the same kind that costs nothing."""
        return Workload(N=1, H=4, W=4, dtype=self.dtype, device=self.device)

    def to_record(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)

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
        """Return the multiply-adds of a phase, counted as two operations each."""
        sizes = self.N, self.L, self.S, self.E, self.Ev
        forward, backward = forward_flops(*sizes), backward_flops(*sizes, shared=self.shared)
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

        rows, columns = (self.Hk, self.Wk) if self.Hk else (self.H, self.W)
        query = placed(F.leaky_relu_(noise(self.E, self.H, self.W), 0.01), self)
        key = (
            query
            if self.shared
            else placed(F.leaky_relu_(noise(self.E, rows, columns), 0.01), self)
        )
        value = placed(F.leaky_relu_(noise(self.Ev, rows, columns), 0.01), self)
        return query, key, value, placed(noise(self.Ev, self.H, self.W), self)


def _no_refusal(workload: Any) -> str:
    return ""


def _never(workload: Any) -> bool:
    return False


@dataclass(frozen=True)
class Form:
    """One way to compute an op.

    Attributes:
        name: Its name in tables.
        compute: The function of the op's tensors.
        refuses: A sentence when the form cannot take a workload, else an empty string.
        builds_matrix: Whether it holds all weights of a workload; used to predict its memory.
        provider: Module with a ``FORMS`` table that has this form, for the fresh process to import.
    """

    name: str
    compute: Callable[..., Tensor]
    refuses: Callable[[Any], str] = _no_refusal
    builds_matrix: Callable[[Any], bool] = _never
    provider: str = "ocnet.engine.workload"

    def predicted_bytes(self, workload: Call, phase: str) -> int:
        """Predict the peak beyond the inputs: results, and two (forward) or three matrices."""
        results = workload.result_bytes(phase)
        if not self.builds_matrix(workload):
            return results
        matrices = 2 if phase == FORWARD else 3
        return results + matrices * workload.weights * workload.itemsize


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
