# SPDX-License-Identifier: MIT
"""What the launches of the Triton kernels on groups read, stage by stage, and how it is passed."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ocnet.ops._partition import Axes
from ocnet.ops.partitioned_attention.triton_items import items

Tensors = list[Tensor]


class Sides(NamedTuple):
    """What the kernels read, a tensor for each stage; the last two are those of a backward."""

    axes: list[Axes]
    query: Tensors
    key: Tensors
    value: Tensors
    scale: float
    lse: Tensors
    grad_out: Tensors
    delta: Tensors

    def only(self, stages: Sequence[int]) -> "Sides":
        """Return what belongs to some of the stages."""
        return Sides(
            axes=[self.axes[stage] for stage in stages],
            query=choose(self.query, stages),
            key=choose(self.key, stages),
            value=choose(self.value, stages),
            scale=self.scale,
            lse=choose(self.lse, stages),
            grad_out=choose(self.grad_out, stages),
            delta=choose(self.delta, stages),
        )

    def items(self, rows: int, programs: int | None = None) -> Tensor:
        """Return the work items of a launch, one for each tile of rows or at most so many a group."""
        axes, images = tuple(self.axes), tuple(len(query) for query in self.query)
        return items(axes, images, rows, programs, self.query[0].device)


def choose(tensors: Tensors, stages: Sequence[int]) -> Tensors:
    """Return the tensors of some of the stages, or an empty list of an empty list."""
    return [tensors[stage] for stage in stages] if tensors else []


def strides(matrix: str, axes: str, tensors: Sequence[Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the kernel's names of leading strides, with the values of every stage."""
    return {
        f"stride_{matrix}{axis}": tuple(each.stride(i) for each in tensors)
        for i, axis in enumerate(axes)
    }
