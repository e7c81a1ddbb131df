# SPDX-License-Identifier: MIT
"""What ptxas made of the probes: the sources that the emulator runs, compiled for sm_90a."""

import itertools
import re
import subprocess
from pathlib import Path

import pytest

from tests.emulator import device
from tests.ptxas import complaints_of, kernels_of, register_limits, spilling

pytestmark = pytest.mark.native

PLANTED = """\
#include "common/ptx/registers.cuh"
#include "common/ptx/wgmma.cuh"

using namespace ocnet;

OCNET_KERNEL(128, 1) unwaited(float* out, uint64_t a, uint64_t b) {
  float d[4] = {};
  ptx::wgmma_fence();
  ptx::wgmma<BFloat16, 8, ptx::Contiguous::kChannels, ptx::Contiguous::kChannels>(d, a, b, true);
  ptx::wgmma_commit();
  out[device::thread_index()] = d[0];
  ptx::wgmma_wait<0>();
}

__global__ void unbounded(float* out) {
  ptx::raise_registers<232>();
  out[device::thread_index()] = 1;
}

OCNET_KERNEL(512, 2) spilling(float* out, int stride) {
  float held[80];
  OCNET_UNROLL
  for (int i = 0; i < 80; ++i) held[i] = out[i * stride];
  device::barrier();
  OCNET_UNROLL
  for (int i = 0; i < 80; ++i) out[i * stride + 1] = held[79 - i];
}
"""


@pytest.fixture(scope="module")
def built() -> tuple[Path, Path]:
    try:
        return device.build()
    except device.UnavailableError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def log(built: tuple[Path, Path]) -> str:
    return built[1].read_text()


@pytest.fixture(scope="module")
def ptx(built: tuple[Path, Path]) -> str:
    return built[0].with_suffix(".ptx").read_text()


def test_nothing_spills(log):
    kernels = kernels_of(log)
    assert len(kernels) > 100
    assert {kernel.arch for kernel in kernels} == {"sm_90a"}
    assert spilling(kernels) == []


def test_the_compiler_has_nothing_to_complain_of(log):
    assert complaints_of(log) == []


def test_registers_are_within_launch_bounds(log, ptx):
    limits = register_limits(ptx)
    kernels = kernels_of(log)
    assert limits.keys() == {kernel.name for kernel in kernels}
    assert [kernel for kernel in kernels if kernel.registers > limits[kernel.name]] == []
    # The kernel whose warpgroups hand registers to one another starts with its share.
    (shared,) = (kernel for kernel in kernels if "registers_kernelENS0_14" in kernel.name)
    assert shared.registers == limits[shared.name] == 168


def test_shared_memory_is_all_dynamic(log):
    assert [kernel for kernel in kernels_of(log) if kernel.static_shared] == []


_KERNEL = re.compile(
    r"\.entry _ZN5ocnet6probes\d+wgmma_(shared|registers)_kernelI\w*?\d([BT]?Float\d+)E"
    r"Li(\d+)E\w*?ContiguousE(\d)(?:ELS\d_(\d))?\w*\((.*?)\bret;",
    re.DOTALL,
)
_PRODUCT = re.compile(
    r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)(k\d+\.f32\.\w+\.\w+)"
    r" \{([^}]*)\}, (%rd\d+|\{%r\d+(?:, %r\d+){3}\}), %rd\d+, p, 1, 1((?:, [01])*);"
)
_SHAPES = {
    "BFloat16": "k16.f32.bf16.bf16",
    "Float16": "k16.f32.f16.f16",
    "TFloat32": "k8.f32.tf32.tf32",
    "Float8": "k32.f32.e4m3.e4m3",
}


def test_every_wgmma_says_what_its_kernel_asks_for(ptx):
    """Operand numbers are text in the header, each width has its own."""
    widths = {"shared": set(), "registers": set()}
    types = set()
    for a_from, scalar, columns, *major, body in _KERNEL.findall(ptx):
        products = _PRODUCT.findall(body)
        assert len(products) == 2  # steps
        for width, shape, sums, a, transposed in products:
            assert width == columns
            assert shape == _SHAPES[scalar]
            numbers = [int(name.removeprefix("%f")) for name in sums.split(", ")]
            assert len(numbers) == int(columns) // 2
            assert len({after - before for before, after in itertools.pairwise(numbers)}) <= 1
            assert a.startswith("{") == (a_from == "registers")
            # 1 for tokens, the second value of Contiguous; only 16-bit operands have a choice.
            asked = [bit for bit in major if bit] if shape.startswith("k16.") else []
            assert re.findall(r"\d", transposed) == asked
        widths[a_from].add(int(columns))
        types.add((a_from, scalar))
    assert list(widths.values()) == [set(range(8, 257, 8))] * 2
    assert types == set(itertools.product(widths, _SHAPES))


def test_planted_faults_are_seen(tmp_path):
    """Faults that the compiler repairs or ignores, in a kernel of their own each."""
    source, report = tmp_path / "planted.cu", tmp_path / "ptxas.txt"
    source.write_text(PLANTED)
    try:
        device.compile_with_nvcc([source, "-c", "-o", tmp_path / "planted.o"], report)
    except device.UnavailableError as reason:
        pytest.skip(str(reason))
    text = report.read_text()
    codes = {re.search(r"C75\d\d", line)[0] for line in complaints_of(text)}
    assert codes == {"C7508", "C7517"}
    assert [k.name for k in spilling(kernels_of(text)) if "spilling" in k.name] != []
    assert [k.name for k in spilling(kernels_of(text)) if "spilling" not in k.name] == []


def test_what_does_not_compile_is_shown(tmp_path):
    source = tmp_path / "wrong.cu"
    source.write_text("this is no C++\n")
    try:
        with pytest.raises(subprocess.CalledProcessError, match=r"wrong\.cu"):
            device.compile_with_nvcc([source, "-c", "-o", tmp_path / "x.o"], tmp_path / "log")
    except device.UnavailableError as reason:
        pytest.skip(str(reason))
