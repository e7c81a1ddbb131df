# SPDX-License-Identifier: MIT
"""What the cost model foretells of the Hopper forward kernel; docs/kernels.md has the formulas.

python -m benchmarks.hopper.model                          # the table, printed
python -m benchmarks.hopper.model --into docs/kernels.md   # in its place
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.hopper.library import HERE, ROOT
from benchmarks.report import insert, line
from ocnet.ops.oc_attention.flops import forward_flops
from tools.native_build import find_toolchain

# Of an H200: multiprocessors; dense 16-bit operations of the tensor cores and bytes of shared memory per
# clock of each; clock by the datasheet; and the rates that large products and copies were measured at.
MULTIPROCESSORS = 132
TENSOR_OPS = 4096
SHARED_BYTES = 128
CLOCK_GHZ = 1.83
PRODUCT_TFLOP_S = 790.0
COPY_TB_S = 4.3

BEGIN, END = "<!-- rows: made by benchmarks.hopper.model -->", "<!-- end of rows -->"
_HEADER = (
    "call",
    "tile",
    "tensor, shared clocks of a step",
    "L2 B/clock",
    "tiles on clusters",
    "busy",
    "floor",
    "foretold",
    "TFLOP/s",
)


class Plan(NamedTuple):
    """What plan.cpp prints."""

    channels: int
    values: int
    cols: int
    cluster: int
    shared_bytes: int
    tiles: int
    workers: int
    steps: int  # of a tile
    longest: int  # steps of the worker that has most
    parts: int
    slices: int


@dataclass(frozen=True)
class Shape:
    """A dense call with shared keys, and its case in benchmarks/cases.py."""

    case: str
    images: int
    tokens: int
    channels: int = 256
    values: int = 256


SHAPES = (
    Shape("base-97-n1", 1, 9409),
    Shape("base-97-n2", 2, 9409),
    Shape("base-97-n4", 4, 9409),
    Shape("base-97-n8", 8, 9409),
    Shape("base-97-v512-n4", 4, 9409, values=512),
    Shape("asp-97-n4", 4, 9409, channels=128),
    Shape("whole-129x257", 1, 129 * 257),
    Shape("pooled-48-n1", 1, 2304),
    Shape("pooled-48-n8", 8, 2304),
)


@dataclass(frozen=True)
class Forecast:
    """The model's numbers of a call.

    Attributes:
        tensor: Clocks of a step on the tensor cores of a multiprocessor.
        shared: Clocks of a step on its shared memory.
        l2_bytes: Bytes that a multiprocessor asks of L2 in a clock.
        busy: Part of the workers' time in which they have steps.
        floor_us: Operations at the rate of a large product.
        time_us: The time foretold.
        tflop_s: The rate foretold.
    """

    plan: Plan
    tensor: float
    shared: float
    l2_bytes: float
    busy: float
    floor_us: float
    time_us: float
    tflop_s: float


def forecast(shape: Shape, plan: Plan) -> Forecast:
    """Apply the model to a plan."""
    per_key = plan.channels + plan.values
    tensor = 2 * 128 * plan.cols * per_key / TENSOR_OPS
    # Of each of two warpgroups: scores read 64 rows and the keys for every 16 channels, sums the
    # values for every 16 keys. Then what the copy engine writes.
    scores = plan.channels / 16 * (64 * 32 + plan.cols * 32) / SHARED_BYTES
    sums = plan.cols / 16 * plan.values * 32 / SHARED_BYTES
    copied = plan.cols * per_key * 2
    shared = 2 * (scores + sums) + copied / SHARED_BYTES
    step = max(tensor, shared)
    flops = forward_flops(shape.images, shape.tokens, shape.tokens, shape.channels, shape.values)
    workers = MULTIPROCESSORS // plan.cluster
    busy = plan.tiles * plan.steps / (workers * plan.longest)
    # The chip slows its clock where tensor cores are the limit.
    clock = CLOCK_GHZ * min(1.0, PRODUCT_TFLOP_S / _peak() * step / tensor)
    part_bytes = 2 * plan.parts * plan.cluster * 128 * (plan.values + 4) * 4
    time_us = plan.longest * step / clock / 1e3 + part_bytes / COPY_TB_S / 1e6
    return Forecast(
        plan,
        tensor,
        shared,
        copied / plan.cluster / step,
        busy,
        flops / PRODUCT_TFLOP_S / 1e6,
        time_us,
        flops / time_us / 1e6,
    )


def _peak() -> float:
    return MULTIPROCESSORS * TENSOR_OPS * CLOCK_GHZ / 1e3


def plans(shapes: Sequence[Shape]) -> list[Plan]:
    """Ask the host side of the kernel.

    Raises:
        FileNotFoundError: There is no C++ compiler.
    """
    compiler = find_toolchain().cxx
    if compiler is None:
        raise FileNotFoundError("no C++ compiler: plans are made by the kernel's own C++")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "plan"
        options = ["-std=c++17", "-O1", f"-I{ROOT / 'csrc'}"]
        subprocess.run([compiler, *options, str(HERE / "plan.cpp"), "-o", str(program)], check=True)
        found = []
        for shape in shapes:
            sizes = shape.images, shape.tokens, shape.channels, shape.values, MULTIPROCESSORS
            command = [str(program), *map(str, sizes)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(Plan(*map(int, said.split())))
    return found


def tables() -> str:
    """Return the table of all shapes."""
    rows = [line(_HEADER), line(["---"] * len(_HEADER))]
    for shape, plan in zip(SHAPES, plans(SHAPES), strict=True):
        rows.append(line(_cells(shape, forecast(shape, plan))))
    return "\n".join(rows)


def _cells(shape: Shape, of: Forecast) -> list[str]:
    plan = of.plan
    how = f"cut into {plan.parts} parts" if plan.parts else "whole"
    return [
        shape.case,
        f"{plan.channels}/{plan.values} x {plan.cols}",
        f"{of.tensor:.0f}, {of.shared:.0f}",
        f"{of.l2_bytes:.1f}",
        f"{plan.tiles} on {plan.workers}, {how}",
        f"{of.busy:.0%}",
        f"{of.floor_us:.0f} us",
        f"{of.time_us:.0f} us",
        f"{of.tflop_s:.0f}",
    ]


def main(argv: Sequence[str]) -> int:
    """Print the table, or put it into a document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hopper.model", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--into", type=Path, help="document to put the table into")
    options = parser.parse_args(argv)
    if options.into is None:
        print(tables())
        return 0
    text = options.into.read_text(encoding="utf-8")
    options.into.write_text(insert(text, tables(), BEGIN, END), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
