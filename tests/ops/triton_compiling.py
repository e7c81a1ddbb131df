# SPDX-License-Identifier: MIT
"""Compiles what a Triton back end would launch to machine code, without a GPU.

Launches are recorded on tensors without storage and turned into the signature that Triton's own
launcher would make of them.
"""

import functools
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from ocnet.ops.oc_attention import configs

KERNELS = ("forward", "value", "query", "key", "both")
WIDTHS = (16, 32, 64, 128, 256, 512)
# A dtype of each width, and whether its products are rounded to TF32.
KINDS = ((torch.bfloat16, False), (torch.float32, False), (torch.float32, True))
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32"}


class Launches:
    """Stands in for the kernels' module and keeps what would have been launched."""

    def __init__(self, kernels: ModuleType) -> None:
        self._kernels = kernels
        self.kept: list[tuple[Any, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self._kernels, name)
        if not name.endswith("_kernel"):
            return kernel
        launches = self.kept

        class Launcher:
            def __getitem__(self, grid: tuple[int, ...]) -> Any:
                return lambda **arguments: launches.append((kernel, arguments))

        return Launcher()


class Resources(NamedTuple):
    """What a compiled launch takes; ``described``: the TMA descriptors that its launcher encodes."""

    shared: int
    registers: int | None
    spilled: int | None
    described: int
    assembly: str


def assert_usable(tile: configs.Tile, kernel: configs.Kernel, e: int, ev: int) -> None:
    """Assert that whole slices and programs cover the channels of a call."""
    wide_e, wide_ev = configs.padded(e), configs.padded(ev)
    assert wide_e % tile.slice_e == 0
    assert wide_ev % tile.slice_v == 0
    assert (wide_ev if kernel in ("forward", "value") else wide_e) % tile.out == 0
    # the least that tensor cores multiply
    assert min(tile.rows, tile.cols, tile.slice_e, tile.slice_v, tile.out) >= 16
    # one program writes both gradients
    assert tile.out_v == 0 or (tile.out, tile.out_v) == (wide_e, wide_ev)


def limit(capability: int) -> int:
    """Return the shared memory that a block may have, bytes."""
    return configs.SHARED_MEMORY_HOPPER if capability == 90 else configs.SHARED_MEMORY_PORTABLE


def compile_launch(launch: tuple[Any, dict[str, Any]], capability: int, folder: Path) -> Resources:
    """Compile one recorded launch for a compute capability (80, 90)."""
    import triton
    from triton.backends.compiler import GPUTarget

    kernel, arguments = launch
    named = ("num_warps", "num_stages", "enable_fp_fusion")
    built = triton.compile(
        _source(kernel, arguments),
        target=GPUTarget("cuda", capability, 32),
        options={name: arguments[name] for name in named if name in arguments},
    )
    tool, usage = _cuobjdump(), None
    if tool is not None:
        cubin = folder / "kernel.cubin"
        cubin.write_bytes(built.asm["cubin"])
        listing = subprocess.run(
            [tool, "-res-usage", str(cubin)], capture_output=True, text=True, check=True
        ).stdout
        # Local memory of these kernels is nothing but spilled registers.
        usage = re.search(r"REG:(\d+) STACK:(\d+)", listing)
    registers, spilled = (None, None) if usage is None else map(int, usage.groups())
    described = len(getattr(built.metadata, "tensordesc_meta", None) or ())
    return Resources(built.metadata.shared, registers, spilled, described, built.asm["ptx"])


def _source(kernel: Any, arguments: dict[str, Any]) -> Any:
    """What Triton's launcher makes of the arguments: types, constants and alignments."""
    from triton.compiler import ASTSource

    constants, attributes = {}, {}

    def kind(given: Any, path: tuple[int, ...], constant: bool, any_size: bool) -> Any:
        if isinstance(given, tuple):
            return tuple(kind(each, (*path, i), False, any_size) for i, each in enumerate(given))
        size = isinstance(given, int) and not any_size
        if constant or given is None or (size and given == 1):
            constants[path] = given
            return "constexpr"
        if hasattr(given, "block_shape"):
            return f"tensordesc<{TYPES[given.base.dtype]}{given.block_shape}>"
        if isinstance(given, float):
            return "fp32"
        if isinstance(given, torch.Tensor) or (size and given % 16 == 0):
            attributes[path] = [["tt.divisibility", 16]]
        if isinstance(given, torch.Tensor):
            return "*" + TYPES[given.dtype]
        return "i32" if given < 2**31 else "i64"

    signature = {
        parameter.name: kind(
            arguments.get(parameter.name, parameter.default),
            (index,),
            parameter.is_constexpr,
            parameter.do_not_specialize,
        )
        for index, parameter in enumerate(kernel.params)
    }
    return ASTSource(kernel, signature, constants, attributes)


@functools.cache
def _cuobjdump() -> str | None:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(path) if path.exists() else None
