# SPDX-License-Identifier: MIT
"""One call of an op as sizes, and the ways to compute it; here what ops share, and attention."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from typing import Any, TypeVar

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

C = TypeVar("C", bound="Call")


def in_phase(phase: str, forward: int, backward: int) -> int:
    """Return the cost of a phase, of those of the two passes."""
    return {FORWARD: forward, BACKWARD: backward, STEP: forward + backward}[phase]


@dataclass(frozen=True)
class Call(ABC):
    """Sizes and kinds of one call of an op: what measuring needs to know of it.

    Attributes:
        N: Batch size.
        H: Rows of the map.
        W: Columns of the map.
        dtype: ``"float32"``, ``"bfloat16"``, ...
        device: ``"cpu"`` or ``"cuda"``.
        layout: ``"nchw"`` or ``"channels_last"``.
    """

    N: int
    H: int
    W: int
    _: KW_ONLY
    dtype: str = "float32"
    device: str = "cpu"
    layout: str = "nchw"

    def __post_init__(self) -> None:
        """Refuse sizes that make no call."""
        kind = type(self).__name__
        if self.dtype not in _DTYPES:
            raise ValueError(f"{kind}: dtype must be of {', '.join(_DTYPES)}, got {self.dtype}")
        if min(self.N, self.H, self.W, *self.widths) < 1:
            raise ValueError(f"{kind}: sizes must be at least 1, got {self}")

    @property
    def L(self) -> int:
        """Positions of the map."""
        return self.H * self.W

    @property
    def channels(self) -> int:
        """Channels of the first argument."""
        return self.widths[0]

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
    def options(self) -> dict[str, Any]:
        """What the op takes besides tensors, by name."""
        return {}

    @property
    @abstractmethod
    def arguments(self) -> tuple[str, ...]:
        """Names of the tensors that the op takes, in order."""

    @property
    def passing(self) -> tuple[str, ...]:
        """Names of the arguments that nobody keeps but the op, if it does."""
        return self.arguments

    @property
    @abstractmethod
    def widths(self) -> tuple[int, ...]:
        """Numbers of channels that the sizes name, that of the first argument first."""

    @property
    @abstractmethod
    def weights(self) -> int:
        """Softmax weights, which the plain formula holds."""

    @abstractmethod
    def io_bytes(self, phase: str) -> int:
        """Return the least bytes a phase must move: inputs read once, results written once."""

    def streamed_bytes(self, phase: str) -> int:
        """Return the bytes a phase moves where no map stays on chip from one pass to the next.

        More than :meth:`io_bytes` where a phase needs two passes over a map.
        """
        return self.io_bytes(phase)

    @abstractmethod
    def flops(self, phase: str) -> int:
        """Return the multiply-adds of a phase, counted as two operations each."""

    @abstractmethod
    def result_bytes(self, phase: str) -> int:
        """Return the bytes of what a phase hands back: the output, and the gradients."""

    @abstractmethod
    def inputs(self, seed: int = 0) -> tuple[Tensor, ...]:
        """Make the arguments, and then a gradient of each output."""

    @abstractmethod
    def small(self: C) -> C:
        """Return a call of the same kind that costs nothing."""

    def on(self: C, device: str, dtype: str) -> C:
        """Return the same call on another device, in another dtype."""
        return replace(self, device=device, dtype=dtype)

    def to_record(self) -> dict[str, Any]:
        """Return plain values, which :func:`ocnet.engine.measure.call_of` reads."""
        return asdict(self)

    def placed(self, values: Tensor) -> Tensor:
        """Return a map in the device, dtype and layout of the call."""
        dense = torch.channels_last if self.layout == "channels_last" else torch.contiguous_format
        return values.to(self.device, self.torch_dtype).contiguous(memory_format=dense)


class Noise:
    """Maps of a call, from one seed, drawn where the call runs: large ones take a GPU no time.

    Args:
        call: What they are for.
        seed: Of all of them, in the order in which they are asked for.
    """

    def __init__(self, call: Call, seed: int) -> None:
        self._call = call
        self._generator = torch.Generator(call.device).manual_seed(seed)

    def plain(self, channels: int, rows: int, columns: int, factor: float = 1) -> Tensor:
        """Return normal noise, as a gradient is."""
        return self._call.placed(factor * self._normal(channels, rows, columns))

    def activated(self, channels: int, rows: int, columns: int) -> Tensor:
        """Return noise as the activation of a transform leaves it.

        With plain noise the softmax of shared query and key would sit on the diagonal.
        """
        return self._call.placed(F.leaky_relu_(self._normal(channels, rows, columns), 0.01))

    def vector(self, size: int) -> Tensor:
        """Return normal noise as parameters are kept: in float32, or float64 beside float64 maps."""
        dtype = torch.promote_types(self._call.torch_dtype, torch.float32)
        return self._draw(size).to(dtype)

    def _normal(self, *shape: int) -> Tensor:
        return self._draw(self._call.N, *shape)

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self._call.device)


@dataclass(frozen=True)
class Workload(Call):
    """Sizes and kinds of one call of attention; docs/architecture.md has the letters.

    Attributes:
        N: Batch size.
        H: Rows of the query map.
        W: Columns of the query map.
        dtype: ``"float32"``, ``"bfloat16"``, ...
        device: ``"cpu"`` or ``"cuda"``.
        layout: ``"nchw"`` or ``"channels_last"``.
        E: Channels of query and key.
        Ev: Channels of value.
        Hk: Rows of the key map; 0 for the query's.
        Wk: Columns of the key map; 0 for the query's.
        shared: Whether query and key are one tensor, as in OCNet.
    """

    E: int = 256
    Ev: int = 256
    Hk: int = 0
    Wk: int = 0
    shared: bool = True

    def __post_init__(self) -> None:
        """Refuse sizes that make no call."""
        super().__post_init__()
        if (self.Hk == 0) != (self.Wk == 0) or (self.shared and self.Hk):
            raise ValueError(
                f"Workload: Hk and Wk must be given together, and only without shared keys, got {self}"
            )

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the tensors that the op takes, in order."""
        return "query", "key", "value"

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of query and key, and of value."""
        return self.E, self.Ev

    @property
    def S(self) -> int:
        """Key tokens."""
        return self.Hk * self.Wk if self.Hk else self.L

    @property
    def weights(self) -> int:
        """Softmax weights, which the plain formula holds."""
        return self.N * self.L * self.S

    def small(self) -> "Workload":
        """Return a call of the same kind that costs nothing."""
        return Workload(N=1, H=4, W=4, dtype=self.dtype, device=self.device)

    def io_bytes(self, phase: str) -> int:
        """Return the least bytes a phase must move: inputs read once, results written once.

        The backward pass reads query, key, value, output and its gradient and writes the gradients.
        """
        sources, outputs, sums = self._sources(), self.N * self.L * self.Ev, 4 * self.N * self.L
        forward = (sources + outputs) * self.itemsize + sums
        backward = 2 * (sources + outputs) * self.itemsize + sums
        return in_phase(phase, forward, backward)

    def flops(self, phase: str) -> int:
        """Return the multiply-adds of a phase, counted as two operations each."""
        sizes = self.N, self.L, self.S, self.E, self.Ev
        return in_phase(phase, forward_flops(*sizes), backward_flops(*sizes, shared=self.shared))

    def result_bytes(self, phase: str) -> int:
        """Return the bytes of what a phase hands back: the output, and the gradients."""
        output = self.N * self.L * self.Ev * self.itemsize
        return output if phase == FORWARD else output + self._sources() * self.itemsize

    def _sources(self) -> int:
        """Return the elements of query, key and value."""
        queries = self.N * self.L * self.E
        keys = 0 if self.shared else self.N * self.S * self.E
        return queries + keys + self.N * self.S * self.Ev

    def inputs(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Make query, key and value as the key transform leaves them, and a gradient of the output."""
        noise = Noise(self, seed)
        size = (self.Hk, self.Wk) if self.Hk else (self.H, self.W)
        query = noise.activated(self.E, self.H, self.W)
        key = query if self.shared else noise.activated(self.E, *size)
        value = noise.activated(self.Ev, *size)
        return query, key, value, noise.plain(self.Ev, self.H, self.W)


def _no_refusal(workload: Any) -> str:
    return ""


def _never(workload: Any) -> bool:
    return False


def _as_they_are(*tensors: Tensor) -> Sequence[Tensor]:
    return tensors


@dataclass(frozen=True)
class Form:
    """One way to compute an op.

    Attributes:
        name: Its name in tables.
        compute: The function of the op's tensors, and of a call's options by name; a tensor, or one
            for each output.
        refuses: A sentence when the form cannot take a workload, else an empty string.
        builds_matrix: Whether it holds all weights of a workload; used to predict its memory.
        provider: Module with a ``FORMS`` table that has this form, for the fresh process to import.
        prepare: Makes of the op's tensors those that ``compute`` takes, untimed and before each call:
            a copy of one that is overwritten, for example.
        phases: Those it has; a form that has no :data:`BACKWARD` has no gradients.
        formula: The plain formula with the roundings of the form, whose errors say how large those of
            the form may be; ``None`` for that of the op.
    """

    name: str
    compute: Callable[..., Tensor | Sequence[Tensor]]
    refuses: Callable[[Any], str] = _no_refusal
    builds_matrix: Callable[[Any], bool] = _never
    provider: str = "ocnet.engine.workload"
    prepare: Callable[..., Sequence[Tensor]] = _as_they_are
    phases: tuple[str, ...] = PHASES
    formula: Callable[..., Tensor | Sequence[Tensor]] | None = None

    def run(self, call: Call, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the outputs of a call on prepared tensors."""
        results = self.compute(*tensors, **call.options)
        return (results,) if isinstance(results, Tensor) else tuple(results)

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


def sdpa_builds_matrix(workload: Any) -> bool:
    """Tell whether torch's kernel refuses the widths of value and key, and the matrix is built."""
    refused: bool = workload.device == "cpu" and workload.Ev != workload.E
    return refused


FORMS = {
    form.name: form
    for form in (
        Form("fused", oc_attention),
        Form("naive", naive_attention, builds_matrix=lambda workload: True),
        Form("sdpa", _sdpa, builds_matrix=sdpa_builds_matrix),
    )
}
