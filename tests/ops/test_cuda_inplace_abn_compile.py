# SPDX-License-Identifier: MIT
"""How the compiled kernels of in-place ABN read and write maps: 16 bytes at a time."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.emulator.device import UnavailableError, find_nvcc

pytestmark = pytest.mark.native

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SLABS = "\n".join(
    f"template __global__ void inplace_abn_{name}_slab_kernel<BFloat16, {whole}>({params});"
    for name, params in (
        ("fwd", "SlabForwardParams<BFloat16>"), ("bwd", "SlabBackwardParams<BFloat16>")
    )
    for whole in ("true", "false")
)  # fmt: skip
STREAMS = "\n".join(
    f"template __global__ void inplace_abn_{name}_{kind}_kernel<float>({params}<float, {cut}>);"
    for kind, cut in (("planes", "PlaneCut"), ("rows", "RowCut"))
    for name, params in (
        ("stats", "StatsParams"), ("fwd", "ForwardParams"), ("bwd_reduce", "BackwardParams"),
        ("bwd_apply", "BackwardParams"),
    )
)  # fmt: skip
SOURCE = f"""\
#include "inplace_abn_rows.cuh"
#include "inplace_abn_slab.cuh"

namespace ocnet::abn {{
{SLABS}
{STREAMS}
}}
"""


@pytest.fixture(scope="module")
def ptx(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the PTX of each kernel, by its name and what follows its template arguments."""
    try:
        nvcc = find_nvcc()
    except UnavailableError as reason:
        pytest.skip(str(reason))
    folder = tmp_path_factory.mktemp("abn")
    source, target = folder / "abn.cu", folder / "abn.ptx"
    source.write_text(SOURCE)
    flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-I{CSRC}", "-arch=compute_90a"]
    subprocess.run([nvcc, *flags, "-ptx", source, "-o", target], check=True, capture_output=True)
    found = re.findall(
        r"\.entry \w*?inplace_abn_(\w+?)_kernelI(\w*?)EEv\w*\((.*?)\n\}\n", target.read_text(), re.S
    )
    kernels = {name + kind: body for name, kind, body in found}
    assert len(kernels) == 12
    return kernels


def count(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text))


LOAD, STORE = r"ld\.global(?:\.nc)?\.v4\.", r"st\.global\.v4\."
COPY = r"cp\.async\.cg\.shared\.global \[%\w+\], \[%\w+\], 16,"


@pytest.mark.parametrize("kind", ["planes", "rows"])
def test_kernels_that_stream_have_vectors_in_flight(ptx, kind: str) -> None:
    for name, loads, stores in (
        # Of the input; of the input, and with a residual of two and two; of two or three maps.
        ("stats", 4, 0), ("fwd", 4 + 4, 4 + 2), ("bwd_reduce", 6, 4), ("bwd_apply", 6, 4),
    ):  # fmt: skip
        text = ptx[f"{name}_{kind}f"]
        assert count(LOAD, text) == loads, name
        assert count(STORE, text) == stores, name


@pytest.mark.parametrize("name", ["fwd", "bwd"])
def test_slabs_are_brought_in_the_background(ptx, name: str) -> None:
    whole, any_ = (ptx[f"{name}_slabNS_8BFloat16ELb{flag}E"] for flag in (1, 0))
    for text in (whole, any_):
        assert count(COPY, text) > 0
        assert count(STORE, text) > 0
        assert count(r"st\.shared\.v4\.|ld\.shared\.v4\.", text) > 0
    # Planes of whole vectors are never read or written number by number.
    number = r"(?:ld|st)\.global\.[ub]16"
    assert count(number, whole) == 0
    assert count(number, any_) > 0


def test_nothing_is_read_through_the_cache_that_does_not_see_writes(ptx) -> None:
    """The output may be the input itself."""
    for name, text in ptx.items():
        assert count(r"ld\.global\.nc", text) == 0, name
