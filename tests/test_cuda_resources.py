# SPDX-License-Identifier: MIT
"""What nvcc reported of the kernels in the built library: registers, spills, shared memory."""

import re
from pathlib import Path

import pytest

from tests.ptxas import (
    Kernel,
    complaints_of,
    kernels_of,
    register_limits,
    seconds_of,
    spilling,
)

REPORT = Path(__file__).resolve().parent.parent / "build" / "native" / "cuda_resources.txt"
ARCHITECTURES = ("sm_80", "sm_90a")
# 256 threads a block: 128 registers let two blocks share a multiprocessor. The tensor-core kernels
# of attention have one block there, whose sums alone take 128.
MOST_REGISTERS = 128
MOST_REGISTERS_OF_ALL = 255
ALONE = (
    "oc_attention_mma_fwd",
    "oc_attention_mma_bwd",
    "oc_attention_hopper_fwd",
    "oc_attention_hopper_split_fwd",
    "oc_attention_hopper_fp8_fwd",
    "oc_attention_hopper_bwd_kernel",
    "oc_attention_hopper_bwd_wide",
    "oc_attention_hopper_bwd_query",
)
HOPPER = ALONE[2:]
# Attention, forward: 3 tiles for each 16-bit dtype and TF32, 2 for strict fp32; backward: 3 for each
# 16-bit dtype, 2 for the others. On Hopper's own instructions: 10 tiles for each 16-bit dtype; 5 for
# strict fp32, in parts that are cut first; in 8 bits 4 for each dtype of the maps; backward, 4 tiles
# and 2 for groups for each 16-bit dtype, of keys with and without the role of queries (2 of these have a
# kernel of their own), and of queries.
# Gathering: 3 dtypes on tensor cores, each in 3 sizes where regions are held in registers. Parts are
# combined in each dtype that is stored; threads multiply what tensor cores do not. Activated batch
# norm: each dtype, and twice where channels stay on chip: planes are
# whole vectors or not. What adds up knows accumulators only.
KERNELS = {
    "inplace_abn_fwd_slab_kernel": 8,
    "inplace_abn_bwd_slab_kernel": 8,
    **{
        f"inplace_abn_{step}_{kind}_kernel": 4
        for step in ("stats", "fwd", "bwd_reduce", "bwd_apply")
        for kind in ("planes", "rows")
    },
    "inplace_abn_merge_kernel": 2,
    "inplace_abn_finish_kernel": 2,
    "oc_attention_hopper_split_fwd_kernel": 5,
    "oc_attention_split_kernel": 1,
    "oc_attention_mma_fwd_kernel": 11,
    "oc_attention_mma_bwd_kernel": 10,
    "oc_attention_hopper_fwd_kernel": 20,
    "oc_attention_hopper_fp8_fwd_kernel": 8,
    "oc_attention_fp8_tokens_kernel": 2,
    "oc_attention_fp8_maxima_kernel": 2,
    "oc_attention_fp8_values_kernel": 2,
    "oc_attention_combine_kernel": 3,
    "oc_attention_hopper_combine_kernel": 3,
    "oc_attention_hopper_bwd_kernel": 20,
    "oc_attention_hopper_bwd_wide_kernel": 4,
    "oc_attention_hopper_bwd_query_kernel": 12,
    "oc_attention_hopper_bwd_combine_kernel": 2,
    "oc_attention_bwd_combine_kernel": 3,
    "oc_attention_bwd_delta_kernel": 4,
    "oc_attention_fwd_kernel": 1,
    "oc_attention_bwd_kernel": 3,
    "spatial_gather_mma_fwd_kernel": 9,
    "spatial_gather_mma_bwd_logits_kernel": 9,
    "spatial_gather_mma_bwd_features_kernel": 3,
    "spatial_gather_combine_kernel": 4,
    "spatial_gather_delta_kernel": 4,
    "spatial_gather_fwd_kernel": 2,
    "spatial_gather_bwd_logits_kernel": 2,
    "spatial_gather_bwd_features_kernel": 2,
}


@pytest.fixture(scope="module")
def log() -> str:
    if not REPORT.is_file():
        pytest.skip("the CUDA library was not built here (no nvcc)")
    return REPORT.read_text()


@pytest.fixture(scope="module")
def kernels(log: str) -> list[Kernel]:
    return kernels_of(log)


@pytest.mark.native
def test_every_kernel_was_compiled_for_every_architecture(kernels: list[Kernel]) -> None:
    names = {arch: {k.name for k in kernels if k.arch == arch} for arch in ARCHITECTURES}
    assert names["sm_80"] == names["sm_90a"]
    found = {kernel: sum(kernel in name for name in names["sm_80"]) for kernel in KERNELS}
    assert found == KERNELS
    assert len(names["sm_80"]) == sum(KERNELS.values())


@pytest.mark.native
def test_nothing_spills(kernels: list[Kernel]) -> None:
    assert spilling(kernels) == []


@pytest.mark.native
def test_the_compiler_has_nothing_to_complain_of(log: str) -> None:
    assert complaints_of(log) == []


@pytest.mark.native
def test_registers_let_the_declared_blocks_share_a_multiprocessor(kernels: list[Kernel]) -> None:
    together = [k for k in kernels if not any(name in k.name for name in ALONE)]
    assert [k for k in together if k.registers > MOST_REGISTERS] == []
    assert [k for k in kernels if k.registers > MOST_REGISTERS_OF_ALL] == []
    assert [k for k in kernels if "delta" in k.name and k.registers > 64] == []


@pytest.mark.native
def test_hoppers_own_instructions_are_for_hopper_only(kernels: list[Kernel]) -> None:
    """Elsewhere nothing calls these kernels, and they are empty."""
    for kernel in kernels:
        if any(name in kernel.name for name in HOPPER):
            assert (kernel.registers > 128) == (kernel.arch == "sm_90a"), kernel
            assert kernel.arch == "sm_90a" or kernel.registers <= 8, kernel


@pytest.mark.native
def test_hopper_kernels_do_not_take_long_to_compile(log: str) -> None:
    """A minute and a half is what it took; accumulators by hundreds can make that many more."""
    seconds = seconds_of(log, "oc_attention_hopper")
    assert len(seconds) == len(re.findall(r"Compiling entry function '\w*oc_attention_hopper", log))
    assert 1 < sum(seconds) < 180


@pytest.mark.native
def test_kernels_that_are_as_fast_as_memory_have_threads_to_wait(kernels: list[Kernel]) -> None:
    """1024 of them on a multiprocessor, or 768 where 16 bytes are eight channels; fewer of fp64."""
    doubles = re.compile(r"_kernelId")
    streaming = [k for k in kernels if "inplace_abn" in k.name and not doubles.search(k.name)]
    assert len(streaming) == 2 * (12 + 24 + 2)
    crowded = [k for k in streaming if k.registers > 64]
    assert [k for k in crowded if "slab" in k.name] == []
    sums_of_rows = "bwd_reduce_rows"  # eight channels of them
    assert [k for k in crowded if k.registers > 80 and sums_of_rows not in k.name] == []


@pytest.mark.native
def test_shared_memory_is_all_dynamic(kernels: list[Kernel]) -> None:
    """Its size is planned, and checked against the device, at launch."""
    assert [k for k in kernels if k.static_shared] == []


SPILL = """\
ptxas info    : Compiling entry function 'k' for 'sm_80'
ptxas info    : Function properties for k
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 200 registers, used 1 barriers, 48 bytes smem, 568 bytes cmem[0]
ptxas info    : Compile time = 12.500 ms
"""


def test_the_reader_sees_a_spill() -> None:
    kernel = Kernel("k", "sm_80", 8, 28, 200, 48)
    assert kernels_of(SPILL) == [kernel]
    assert seconds_of(SPILL, "k") == [0.0125]
    assert spilling([kernel, Kernel("l", "sm_80", 0, 0, 200, 0)]) == [kernel]


@pytest.mark.parametrize(
    "line",
    [
        "ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to"
        " determine register count at entry.",
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are"
        " serialized due to non wgmma instructions defining accumulator registers in function 'k'",
        "ptxas info    : (C7517) warpgroup.wait is injected in around line 50 by compiler to allow"
        " use of registers defined by GMMA in function 'k'",
        "ptxas warning : Unresolved extern variable 'x' in whole program compilation",
    ],
)
def test_the_reader_sees_a_complaint(line: str) -> None:
    assert complaints_of(f"{SPILL}{line}\n{SPILL}") == [line]


def test_the_reader_passes_over_information() -> None:
    assert complaints_of(f"ptxas info    : (C7519) information only\n{SPILL}") == []


def test_the_reader_knows_launch_bounds() -> None:
    ptx = (
        ".visible .entry bounded(\n\t.param .u64 bounded_param_0\n)\n.maxntid 384, 1, 1\n"
        ".minnctapersm 1\n{\n}\n.visible .entry free(\n)\n{\n}\n"
        ".visible .entry shared(\n)\n.maxntid 256\n.minnctapersm 2\n{\n}\n"
    )
    assert register_limits(ptx) == {"bounded": 168, "free": 64, "shared": 128}
