# SPDX-License-Identifier: MIT
"""What nvcc reported of the kernels in the built library: registers, spills, shared memory."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

REPORT = Path(__file__).resolve().parent.parent / "build" / "native" / "cuda_resources.txt"
ARCHITECTURES = ("sm_80", "sm_90a")
# 256 threads a block: 128 registers let two blocks share a multiprocessor, as the kernels declare.
MOST_REGISTERS = 128


@dataclass(frozen=True)
class Kernel:
    name: str
    arch: str
    stack: int
    spilled: int
    registers: int
    static_shared: int


def parse(text: str) -> list[Kernel]:
    """Read the blocks that ``ptxas -v`` prints, one for each kernel and architecture."""
    pattern = re.compile(
        r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
        r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
        re.DOTALL,
    )
    kernels = []
    for found in pattern.finditer(text):
        shared = re.search(r"(\d+) bytes smem", found["rest"])
        kernels.append(
            Kernel(
                found["name"],
                found["arch"],
                int(found["stack"]),
                int(found["stores"]) + int(found["loads"]),
                int(found["registers"]),
                int(shared[1]) if shared else 0,
            )
        )
    return kernels


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    if not REPORT.is_file():
        pytest.skip("the CUDA library was not built here (no nvcc)")
    return parse(REPORT.read_text())


@pytest.mark.native
def test_every_kernel_was_compiled_for_every_architecture(kernels: list[Kernel]) -> None:
    names = {arch: {k.name for k in kernels if k.arch == arch} for arch in ARCHITECTURES}
    assert names["sm_80"] == names["sm_90a"]
    # Four dtypes: forward, delta, and backward for queries, keys and both.
    assert len(names["sm_80"]) == 20


@pytest.mark.native
def test_nothing_spills(kernels: list[Kernel]) -> None:
    assert [k for k in kernels if k.spilled or k.stack] == []


@pytest.mark.native
def test_registers_let_the_declared_blocks_share_a_multiprocessor(kernels: list[Kernel]) -> None:
    assert [k for k in kernels if k.registers > MOST_REGISTERS] == []
    assert [k for k in kernels if "delta" in k.name and k.registers > 64] == []


@pytest.mark.native
def test_shared_memory_is_all_dynamic(kernels: list[Kernel]) -> None:
    """Its size is planned, and checked against the device, at launch."""
    assert [k for k in kernels if k.static_shared] == []


def test_the_reader_sees_a_spill() -> None:
    text = (
        "ptxas info    : Compiling entry function 'k' for 'sm_80'\n"
        "ptxas info    : Function properties for k\n"
        "    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads\n"
        "ptxas info    : Used 200 registers, used 1 barriers, 48 bytes smem, 568 bytes cmem[0]\n"
    )
    assert parse(text) == [Kernel("k", "sm_80", 8, 28, 200, 48)]
