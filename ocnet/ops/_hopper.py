# SPDX-License-Identifier: MIT
"""Attention on Hopper's own instructions: which calls its kernels take, and their operands."""

import functools
from typing import Any

import torch
from torch import Tensor

from ocnet.ops import _extension
from ocnet.ops._layout import ALIGNMENT, aligned_rows
from ocnet.ops.oc_attention.problem import HasChannels

# Whether `make gpu-check` has passed with the kernels of a pass on a device. Until then ``auto`` leaves
# them to calls that ask for ``backend="cuda"``.
CONFIRMED = False
CONFIRMED_BACKWARD = False

CAPABILITY = (9, 0)
NARROW = (torch.bfloat16, torch.float16)
DTYPES = (*NARROW, torch.float32)
MAX_CHANNELS = 256
MAX_VALUES = 512
# Groups of so few 16-bit keys, and whole maps of them, stay on chip in other kernels.
FEW_KEYS = 192


class HopperKernels:
    """Calls ``torch.ops.ocnet_cuda.<op>_hopper_fwd`` and ``_bwd``, where that is possible.

    Args:
        op: Name of the op.
        dtypes: What its forward pass has such kernels for; the backward pass has those of ``NARROW``.
    """

    def __init__(self, op: str, dtypes: tuple[torch.dtype, ...]) -> None:
        self._op = op
        self._dtypes = dtypes
        self._half = "cuda"

    def refuse(self, problem: HasChannels, keys: int, *, backward: bool = False) -> str | None:
        """Return why the kernels do not take a call whose queries see at most ``keys`` keys, or ``None``."""
        if problem.dtype not in (NARROW if backward else self._dtypes):
            return f"they have no products of {problem.dtype}"
        if problem.tf32:
            return "their products of float32 are exact, and TF32 is allowed"
        if problem.E > MAX_CHANNELS or problem.Ev > MAX_VALUES:
            return (
                f"they take up to {MAX_CHANNELS} channels of queries and {MAX_VALUES} of values, "
                f"not E={problem.E}, Ev={problem.Ev}"
            )
        few = FEW_KEYS * 2 // problem.dtype.itemsize
        if keys <= few:
            return f"others keep {few} keys or fewer on chip"
        return self._refuse_device(problem.device)

    def describe(self, problem: HasChannels, keys: int) -> str:
        """Return which kernels a forward pass takes, and why."""
        refusal = self.refuse(problem, keys)
        if refusal is not None:
            return f"forward without Hopper's own instructions: {refusal}"
        if not CONFIRMED:
            return "forward on Hopper's own instructions, not yet confirmed on a device"
        return "forward on Hopper's own instructions"

    def is_first(self, problem: HasChannels, keys: int, backward: bool) -> bool:
        """Tell whether ``auto`` takes these kernels before any other, in one of the passes."""
        confirmed = CONFIRMED_BACKWARD if backward else CONFIRMED
        return confirmed and self.refuse(problem, keys, backward=backward) is None

    def forward(self, call: tuple[Any, ...]) -> None:
        """Write the outputs of a call, whose fields are in the order of the native schema."""
        _overload(self._half, f"{self._op}_hopper_fwd")(*call)

    def backward(self, call: tuple[Any, ...]) -> None:
        """Write the gradients of a call that are wanted."""
        _overload(self._half, f"{self._op}_hopper_bwd")(*call)

    def _refuse_device(self, device: torch.device) -> str | None:
        if device.type != "cuda":
            return "they run on GPUs"
        if _extension.load("cuda").problem is None and not _is_built(self._half, self._op):
            return "the library was built without code for sm_90a"
        if torch.cuda.get_device_capability(device) != CAPABILITY:
            return f"{torch.cuda.get_device_name(device)} has others"
        return None


@functools.cache
def _overload(half: str, name: str) -> Any:
    return getattr(getattr(torch.ops, f"ocnet_{half}"), name).default


@functools.cache
def _is_built(half: str, op: str) -> bool:
    return hasattr(getattr(torch.ops, f"ocnet_{half}"), f"{op}_hopper_fwd")


def have_aligned_channels(*matrices: Tensor | None) -> bool:
    """Tell whether the copy engine can read all of the matrices channel by channel (NCHW)."""
    return all(matrix is None or _has_aligned_channels(matrix) for matrix in matrices)


def _has_aligned_channels(matrix: Tensor) -> bool:
    width = ALIGNMENT // matrix.element_size()
    strides_fit = all(
        matrix.shape[axis] == 1 or matrix.stride(axis) % width == 0 for axis in (0, 2)
    )
    return (
        matrix.stride(1) == 1
        and min(matrix.shape[1:]) > 1
        and strides_fit
        and matrix.data_ptr() % ALIGNMENT == 0
    )


def operands(
    query: Tensor, key: Tensor | None, value: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the operands as the kernels read them; one pass over each that lies otherwise.

    float32 is read as it lies: the kernels make their own copy, in parts.
    """
    if query.dtype == torch.float32 or have_aligned_channels(query, key, value):
        return query, key, value
    return aligned_rows(query), None if key is None else aligned_rows(key), aligned_rows(value)
