# SPDX-License-Identifier: MIT
"""The machine code of the kernels on Hopper's own instructions: that they are in it, and in their order."""

import re
from pathlib import Path

import pytest

from ocnet.ops import _extension
from tests.sass import Code, disassemble, find_cuobjdump, kernels_in

TILE = re.compile(r"HopperTileINS_\d+(\w+?)ELi(\d+)ELi(\d+)ELi(\d+)ELNS_12HopperSourceE(\d)")
WAITS = "WARPGROUP.DEPBAR"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[Code]:
    library, cuobjdump = _extension._find("cuda"), find_cuobjdump()
    if library is None:
        pytest.skip("the CUDA library was not built here (no nvcc)")
    if cuobjdump is None:
        pytest.skip("there is no cuobjdump (part of triton)")
    folder = tmp_path_factory.mktemp("sass")
    return disassemble(cuobjdump, Path(library), "oc_attention_hopper.sm_90a.cubin", folder)


@pytest.fixture(scope="module")
def forward(kernels: list[Code]) -> dict[tuple[str, ...], Code]:
    """The forward kernels by dtype, channels, values, keys and source of their tiles."""
    found = {kernel: TILE.search(kernel.name) for kernel in kernels}
    return {tile.groups(): kernel for kernel, tile in found.items() if tile is not None}


@pytest.mark.native
def test_every_instance_is_there(forward, emulator) -> None:
    rows = {
        (dtype, *map(str, (*row[1:4], row[0])))
        for dtype in ("BFloat16", "Float16")
        for row in emulator.hopper_rows()
    }
    assert set(forward) == rows


@pytest.mark.native
def test_products_are_the_warpgroups_and_run_on(forward) -> None:
    """A step has one product for each 16 channels and each 16 keys, and four kinds of waits."""
    for (_, channels, _, cols, _), kernel in forward.items():
        # Scores twice, for the first step is by itself, and sums twice, for the last one is.
        assert kernel.count("HGMMA") == 2 * (int(channels) // 16 + int(cols) // 16), kernel.name
        assert 0 < kernel.count(WAITS) <= 0.2 * kernel.count("HGMMA"), kernel.name
        assert kernel.count("HMMA", "LDSM") == 0


@pytest.mark.native
def test_registers_are_those_of_the_tile(forward, emulator) -> None:
    registers = {(*map(str, (*r[1:4], r[0])),): r[6] for r in emulator.hopper_rows()}
    for tile, kernel in forward.items():
        assert kernel.highest_register < registers[tile[1:]], kernel.name
        assert kernel.count("STL", "LDL") == 0  # nothing is in local memory
        assert kernel.count("USETMAXREG") == 2, kernel.name


@pytest.mark.native
def test_tiles_come_by_the_copy_engine_or_in_the_background(forward) -> None:
    for (*_, source), kernel in forward.items():
        from_threads = source == "2"
        assert (kernel.count("UTMALDG") > 0) != from_threads, kernel.name
        assert (kernel.count("LDGSTS") > 0) == from_threads, kernel.name


@pytest.mark.native
def test_only_the_barriers_of_the_cluster_wait_for_the_memory_of_the_gpu(forward) -> None:
    """They stand around all work. Releasing a buffer to the other block must not cost as much."""
    for (*_, source), kernel in forward.items():
        fences = [i for i in kernel.places("MEMBAR") if "GPU" in kernel.instructions[i]]
        assert len(fences) == (0 if source == "2" else 2), kernel.name
        products = kernel.places("HGMMA")
        assert not any(products[0] < fence < products[-1] for fence in fences), kernel.name


@pytest.mark.native
def test_the_combination_is_small(kernels: list[Code]) -> None:
    combine = [kernel for kernel in kernels if "hopper_combine" in kernel.name]
    assert len(combine) == 2
    assert [k for k in combine if k.count("HGMMA", "STL", "LDL") or k.highest_register >= 128] == []


DUMP = """\
\t\tFunction : first
\t.headerflags    @"EF_CUDA_SM90 EF_CUDA_PTX_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;     /* 0x00000a00ff017b82 */
                                                              /* 0x000fe20000000800 */
        /*0010*/              @!P0 HGMMA.64x64x16.F32 R24, gdesc[UR4], RZ, !UPT, gsb0 ;
        /*0020*/             @UP0  STL.64 [R1+0x8], R152 ;
\t\tFunction : second
        /*12340*/                  MEMBAR.ALL.GPU ;
"""


def test_the_reader_of_machine_code() -> None:
    first, second = kernels_in(DUMP)
    assert first == Code("first", ("LDC", "HGMMA.64x64x16.F32", "STL.64"), 152)
    assert second == Code("second", ("MEMBAR.ALL.GPU",), -1)
    assert (first.count("STL", "LDL"), first.places("HGMMA")) == (1, [1])
