# SPDX-License-Identifier: MIT
"""One call of attention within groups as sizes: the scales of a pyramid, or one step of ISA."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ocnet.engine.workload import FORWARD, Call, Form, Noise, in_phase
from ocnet.ops import Blocks, Grid, Partition, Strided, partitioned_attention, pyramid_attention
from ocnet.ops.oc_attention.flops import backward_flops, forward_flops
from ocnet.ops.partitioned_attention.flops import pairs

GRID = "grid"
_TILED: dict[str, type[Blocks | Strided]] = {"blocks": Blocks, "strided": Strided}


@dataclass(frozen=True)
class PartitionWorkload(Call):
    """Sizes and kinds of one call of attention within groups; docs/architecture.md has the letters.

    Attributes:
        N: Batch size.
        H: Rows of the maps.
        W: Columns of the maps.
        dtype: ``"float32"``, ``"bfloat16"``, ...
        device: ``"cpu"`` or ``"cuda"``.
        layout: ``"nchw"`` or ``"channels_last"``.
        E: Channels of query and key.
        Ev: Channels of value.
        partition: ``"grid"``, ``"blocks"`` or ``"strided"``.
        sizes: Of a grid, its cells to a side at each scale, each with maps of its own. Else ``(h, w)``,
            which divide ``H`` and ``W``: the networks pad before.
        shared: Whether query and key are one tensor.
        op: Tells its records from those of other ops.
    """

    layout: str = field(default="channels_last", kw_only=True)
    E: int = 256
    Ev: int = 512
    partition: str = GRID
    sizes: tuple[int, ...] = (1, 2, 3, 6)
    shared: bool = True
    op: str = "partitioned_attention"

    def __post_init__(self) -> None:
        """Refuse sizes that make no call."""
        super().__post_init__()
        kinds = (GRID, *_TILED)
        if self.partition not in kinds:
            raise ValueError(
                f"PartitionWorkload: partition must be of {', '.join(kinds)}, got {self.partition}"
            )
        if self.partition in _TILED:
            if len(self.sizes) != 2 or self.H % self.sizes[0] or self.W % self.sizes[1]:
                raise ValueError(
                    f"PartitionWorkload: sizes must be two that divide {self.H} x {self.W}, "
                    f"got {self.sizes}"
                )
        elif len(self.sizes) == 0:
            raise ValueError("PartitionWorkload: sizes must name at least one scale, got none")

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """The partition of each stage."""
        if self.partition == GRID:
            return tuple(Grid(size) for size in self.sizes)
        return (_TILED[self.partition](*self.sizes),)

    @property
    def options(self) -> dict[str, Any]:
        """The partitions."""
        return {"partitions": self.partitions}

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the tensors that the op takes, stage by stage."""
        names = ("query", "key", "value")
        if len(self.partitions) == 1:
            return names
        return tuple(f"{name}_{i}" for i in range(len(self.partitions)) for name in names)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of query and key, and of value."""
        return self.E, self.Ev

    @property
    def weights(self) -> int:
        """Softmax weights of all groups, which the published form holds for its backward pass."""
        return self.N * sum(pairs(each.axes(self.H, self.W)) for each in self.partitions)

    def small(self) -> "PartitionWorkload":
        """Return a call of the same kind that costs nothing."""
        rows, columns = (max(self.sizes),) * 2 if self.partition == GRID else self.sizes
        return replace(self, N=1, H=2 * rows, W=2 * columns, E=16, Ev=16)

    def io_bytes(self, phase: str) -> int:
        """Return the least bytes a phase must move: inputs read once, results written once.

        The backward pass reads query, key, value, output and its gradient and writes the gradients.
        """
        maps = (self._source_bytes() + self._output_bytes()) * len(self.partitions)
        sums = 4 * self.N * self.L * len(self.partitions)
        return in_phase(phase, maps + sums, 2 * maps + sums)

    def flops(self, phase: str) -> int:
        """Return the multiply-adds of a phase, counted as two operations each."""
        sizes = 1, self.weights, 1, self.E, self.Ev
        return in_phase(phase, forward_flops(*sizes), backward_flops(*sizes, shared=self.shared))

    def result_bytes(self, phase: str) -> int:
        """Return the bytes of what a phase hands back: the outputs, and the gradients."""
        gradients = 0 if phase == FORWARD else self._source_bytes()
        return (self._output_bytes() + gradients) * len(self.partitions)

    def inputs(self, seed: int = 0) -> tuple[Tensor, ...]:
        """Make query, key and value of each stage, and then a gradient of each output."""
        noise = Noise(self, seed)
        arguments: list[Tensor] = []
        for _ in self.partitions:
            query = noise.activated(self.E, self.H, self.W)
            key = query if self.shared else noise.activated(self.E, self.H, self.W)
            arguments += (query, key, noise.activated(self.Ev, self.H, self.W))
        return (*arguments, *(noise.plain(self.Ev, self.H, self.W) for _ in self.partitions))

    def _source_bytes(self) -> int:
        """Return the bytes of query, key and value of one stage."""
        keys = 1 if self.shared else 2
        return self.N * self.L * (keys * self.E + self.Ev) * self.itemsize

    def _output_bytes(self) -> int:
        return self.N * self.L * self.Ev * self.itemsize


def stages_of(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return query, key and value of each stage, of the arguments of a call."""
    return [(tensors[i], tensors[i + 1], tensors[i + 2]) for i in range(0, len(tensors), 3)]


def attend(
    *tensors: Tensor, partitions: Sequence[Partition], backend: str = "auto"
) -> Tensor | list[Tensor]:
    """Call the op: one step by itself, or all scales of a pyramid at once."""
    if len(partitions) == 1:
        query, key, value = tensors
        return partitioned_attention(query, key, value, partitions[0], backend=backend)
    return pyramid_attention(stages_of(tensors), partitions, backend=backend)


FORMS = {"fused": Form("fused", attend, provider="ocnet.engine.partition_workload")}
