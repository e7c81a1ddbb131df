# SPDX-License-Identifier: MIT
"""What a launch of the Triton kernels depends on: the machine, the tiles, how tensors are passed.

Triton is imported by the first call that needs it, so this module imports without it.
"""

import functools
import importlib
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ocnet._env import triton_interpreted
from ocnet.ops import _triton
from ocnet.ops._layout import ALIGNMENT, aligned_rows
from ocnet.ops.oc_attention import configs


@functools.cache
def kernels() -> Any:
    """Return the module of the kernels."""
    return importlib.import_module("ocnet.ops.oc_attention.triton_kernels")


@functools.cache
def version() -> tuple[int, int]:
    """Return the major and minor version of the installed Triton."""
    major, minor = importlib.import_module("triton").__version__.split(".")[:2]
    return int(major), int(minor)


class Plan(NamedTuple):
    """What the tiles of a call depend on, beside the kernel: the machine, the numbers, the channels.

    Attributes:
        hopper: Whether the GPU has compute capability 9.x, whose loads go through descriptors.
        math: How products are computed.
        e: Channels of query and key.
        ev: Channels of value.
        multiprocessors: Of the GPU.
        segments: Whether the call is on groups of tokens, which no descriptor reaches.
    """

    hopper: bool
    math: configs.Math
    e: int
    ev: int
    multiprocessors: int
    segments: bool = False

    @staticmethod
    def of(query: Tensor, value: Tensor, tf32: bool, segments: bool = False) -> "Plan":
        """Describe a call on token matrices."""
        half = query.element_size() == 2
        return Plan(
            hopper=is_hopper(query.device),
            math="half" if half else "tf32" if tf32 else "float32",
            e=query.shape[2],
            ev=value.shape[2],
            multiprocessors=multiprocessors(query.device),
            segments=segments,
        )

    @property
    def descriptors(self) -> bool:
        """Whether tiles are loaded through TMA descriptors."""
        return self.hopper and not self.segments

    @property
    def wide_e(self) -> int:
        """Padded channels of query and key."""
        return configs.padded(self.e)

    @property
    def wide_ev(self) -> int:
        """Padded channels of value."""
        return configs.padded(self.ev)

    def tile(self, kernel: configs.Kernel) -> configs.Tile:
        """Return the tile of a kernel."""
        return configs.choose(kernel, self.math, self.hopper, version(), self.e, self.ev)

    def few(self, kernel: configs.FewKernel, keys: int) -> configs.Few | None:
        """Return the tile that keeps all keys on chip, or ``None``."""
        return configs.few_keys(configs.FEW[kernel], self.math, self.hopper, self.e, self.ev, keys)

    def rows(self, matrix: Tensor) -> Tensor:
        """Return a token matrix as the kernels read it; without descriptors its rows are padded."""
        n, tokens, channels = matrix.shape
        wide = configs.padded(channels)
        if self.math == "tf32":
            return rounded(matrix, _aligned(matrix) if self.descriptors else wide)
        if not self.descriptors:
            if channels < wide:
                matrix = functional.pad(matrix, (0, wide - channels))
        elif matrix.stride(2) == 1:
            # A descriptor's rows and images follow one another; those of an expanded map (stride 0)
            # or of images side by side do not.
            image, row = matrix.stride()[:2]
            if (n > 1 and image < tokens * row) or (tokens > 1 and row < channels):
                matrix = matrix.contiguous()
        return aligned_rows(matrix)

    def window(self, matrix: Tensor, tokens: int, channels: int, used: bool = True) -> Any:
        """Return what a kernel loads tiles of ``tokens x channels`` through, if it does."""
        if not (self.descriptors and used):
            return matrix
        n, length, width = matrix.shape
        row = matrix.stride(1) if length > 1 else -(-width // ALIGNMENT) * ALIGNMENT
        image = matrix.stride(0) if n > 1 else length * row
        return kernels().TensorDescriptor(
            matrix, [n, length, width], [image, row, 1], [1, tokens, channels]
        )

    def precision(self) -> str:
        """Return how the kernels treat the operands of their products."""
        if self.math != "float32":
            return self.math
        return "float32x3" if triton_interpreted() else "bf16x3"

    def few_common(self, tile: configs.Few, scale: float) -> dict[str, Any]:
        """Return the arguments that the kernels which keep all keys on chip share."""
        return {
            "scale": scale,
            "BM": tile.rows,
            "BE": self.wide_e,
            "STAGES": tile.stages,
            "TMA": self.descriptors,
            "HOPPER": self.hopper,
            "num_warps": tile.warps,
            # fused multiply-add, said aloud because the default changes with the version of Triton
            "enable_fp_fusion": True,
        }

    def common(self, tile: configs.Tile) -> dict[str, Any]:
        """Return the arguments that the kernels of both directions share."""
        return {
            "BM": tile.rows,
            "BN": tile.cols,
            "BE": tile.slice_e,
            "NE": self.wide_e // tile.slice_e,
            "PRECISION": self.precision(),
            "TMA": self.descriptors,
            "HOPPER": self.hopper,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
            # fused multiply-add, said aloud because the default changes with the version of Triton
            "enable_fp_fusion": True,
        }


class Sides(NamedTuple):
    """What a backward pass reads."""

    grad_out: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    lse: Tensor
    delta: Tensor
    scale: float


def delta_common(ev: int) -> dict[str, Any]:
    """Return the arguments of the kernel of ``delta`` that depend on the channels alone."""
    tile = configs.DELTA
    return {
        "Ev": ev,
        "EVEN_V": ev % tile.channels(ev) == 0,
        "BM": tile.rows,
        "BV": tile.channels(ev),
        "NV": -(-ev // tile.channels(ev)),
        "enable_fp_fusion": True,
    }


def rounded(matrix: Tensor, width: int) -> Tensor:
    """Return a float32 token matrix in rows of ``width`` channels, rounded to TF32, zero past its own."""
    n, tokens, channels = matrix.shape
    rows = matrix.new_empty((n, tokens, width))
    tile = configs.COMBINE
    kernels().oc_attention_round_kernel[grid(rows, tile.rows, tile.channels(channels))](
        p_in=matrix,
        p_out=rows,
        **_triton.strides("i", "ntc", matrix),
        **_triton.strides("o", "nt", rows),
        tokens=tokens,
        channels=channels,
        width=width,
        BT=tile.rows,
        BC=tile.channels(channels),
        enable_fp_fusion=True,
    )
    return rows


def _aligned(matrix: Tensor) -> int:
    """Return the channels of rows whose length is a multiple of the alignment."""
    width = ALIGNMENT // matrix.element_size()
    return -(-matrix.shape[2] // width) * width


def rows_for(result: Tensor) -> Tensor:
    """Return rows of padded channels in which a kernel writes a ``(N, tokens, channels)`` result.

    They are the result itself where its channels lie side by side and fill their padding. Elsewhere a
    store takes an address or a mask per number of its tile, for which there are no registers.
    """
    n, tokens, channels = result.shape
    wide = configs.padded(channels)
    if channels == wide and result.stride(2) == 1:
        return result
    return result.new_empty((n, tokens, wide))


def parts_for(result: Tensor, splits: int) -> Tensor:
    """Return rows of padded channels for the float32 parts of a result."""
    n, tokens, channels = result.shape
    return result.new_empty((splits, n, tokens, configs.padded(channels)), dtype=torch.float32)


def deliver(rows: Tensor, result: Tensor) -> None:
    """Copy what was written in rows to the result, unless it is there already."""
    if rows is not result:
        result.copy_(rows[..., : result.shape[2]])


def is_hopper(device: torch.device) -> bool:
    """Tell whether tensors are on a GPU of compute capability 9.x."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def multiprocessors(device: torch.device) -> int:
    """Return the multiprocessors of a GPU; 1 for the CPU, where Triton's interpreter runs."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def grid(written: Tensor, rows: int, channels: int) -> tuple[int, int]:
    """Return the programs that write a ``(N, tokens, channels)`` result; axis 1 is its channels."""
    n, tokens, width = written.shape
    return n * -(-tokens // rows), -(-width // channels)
