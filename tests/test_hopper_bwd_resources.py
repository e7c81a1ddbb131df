# SPDX-License-Identifier: MIT
"""What nvcc made of the backward kernels on Hopper's own instructions: its report, and machine code."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from ocnet.ops import _extension
from tests.ptxas import Kernel, complaints_of, kernels_of
from tests.sass import Code, disassemble, find_cuobjdump
from tests.test_cuda_resources import REPORT

pytestmark = pytest.mark.native

NAME = "oc_attention_hopper_bwd"
CUBIN = f"{NAME}.sm_90a.cubin"
REGISTERS = 232  # of a consumer
AT_ENTRY = 168  # 384 threads share the file
# Dtype, kind, channels, values; role or columns, and who brings tiles, where there is a choice.
TILE = re.compile(
    r"Hopper(Bwd|BwdWide|Query)TileINS_\d+(\w+?)ELi(\d+)ELi(\d+)E"
    r"(?:L(?:NS_10HopperRoleE|i)(\d+))?(?:ELNS_12HopperSourceE(\d))?E"
)


class Tile(NamedTuple):
    dtype: str
    role: str
    channels: int
    values: int
    cols: int

    @property
    def products(self) -> int:
        """Of 16 channels or columns. The first step and the last sums are by themselves."""
        scores = {
            "both": self.channels + 2 * self.values,
            "wide": self.channels + 2 * self.values,
            "keys": self.channels + self.values,
            "queries": self.channels + self.values,
        }
        sums = {"both": 2, "wide": 2, "keys": 2, "queries": 1}
        return 2 * (scores[self.role] + sums[self.role] * self.cols) // 16

    @property
    def waits(self) -> int:
        """Those of a first step, of a step, a last one: of both consumers, or of the only one."""
        return {"both": 4 + 4, "wide": 5, "keys": 4 + 3, "queries": 4}[self.role]


# Columns, by channels and values.
COLS = {
    "wide": {(64, 64): 64, (128, 128): 48},
    "both": {(128, 256): 64, (256, 256): 64},
    "keys": dict.fromkeys([(64, 64), (128, 128), (128, 256), (256, 256)], 64),
    "queries": {(64, 64): 64, (128, 128): 64, (128, 256): 64, (256, 256): 48},
}
TILES = {
    Tile(dtype, role, *room, cols)
    for dtype in ("BFloat16", "Float16")
    for role, rooms in COLS.items()
    for room, cols in rooms.items()
}


def tile_of(name: str) -> Tile | None:
    """Of a kernel whose tiles the copy engine brings."""
    found = TILE.search(name)
    if found is None or found[6] not in (None, "0"):
        return None
    kind, dtype, channels, values, last, _ = found.groups()
    other = {"BwdWide": "wide", "Query": "queries"}
    role = ("both", "keys")[int(last)] if kind == "Bwd" else other[kind]
    room = int(channels), int(values)
    return Tile(dtype, role, *room, int(last) if kind == "Query" else COLS[role][room])


@pytest.fixture(scope="module")
def log() -> str:
    text = REPORT.read_text() if REPORT.is_file() else ""
    if f"{NAME}_kernel" not in text:
        pytest.skip("no CUDA library with these kernels was built here")
    return text


@pytest.fixture(scope="module")
def reported(log: str) -> list[Kernel]:
    return [kernel for kernel in kernels_of(log) if NAME in kernel.name]


@pytest.fixture(scope="module")
def code(log: str, tmp_path_factory: pytest.TempPathFactory) -> list[Code]:
    library, cuobjdump = _extension._find("cuda"), find_cuobjdump()
    if library is None:
        pytest.skip("the CUDA library was not built here (no nvcc)")
    if cuobjdump is None:
        pytest.skip("there is no cuobjdump (part of triton)")
    return disassemble(cuobjdump, Path(library), CUBIN, tmp_path_factory.mktemp("sass"))


@pytest.fixture(scope="module")
def tiled(code: list[Code]) -> dict[Tile, Code]:
    found = {tile_of(kernel.name): kernel for kernel in code}
    return {tile: kernel for tile, kernel in found.items() if tile is not None}


# --- the report ---


def test_every_kernel_was_compiled_for_every_architecture(reported: list[Kernel]) -> None:
    for arch in ("sm_80", "sm_90a"):
        kernels = [kernel for kernel in reported if kernel.arch == arch]
        tiles = [tile for kernel in kernels if (tile := tile_of(kernel.name)) is not None]
        assert set(tiles) == TILES
        assert len(tiles) == len(TILES)
        assert sum(f"{NAME}_combine_kernel" in kernel.name for kernel in kernels) == 2


def test_registers_are_shared_out_on_hopper_and_not_used_elsewhere(reported) -> None:
    tiled = [kernel for kernel in reported if tile_of(kernel.name) is not None]
    for kernel in tiled:
        if kernel.arch == "sm_90a":
            assert kernel.registers == AT_ENTRY, kernel
        else:
            assert kernel.registers <= 8, kernel  # nothing calls them, and they are empty
    assert [kernel for kernel in reported if kernel.spilled or kernel.stack] == []


def test_the_compiler_has_nothing_to_complain_of(log: str) -> None:
    assert [line for line in complaints_of(log) if NAME in line] == []


# --- machine code ---


def test_products_are_the_warpgroups_and_run_on(tiled: dict[Tile, Code]) -> None:
    """No product more than there are in the source, and no wait, which the compiler may put in."""
    assert set(tiled) == TILES
    for tile, kernel in tiled.items():
        assert kernel.count("HGMMA") == tile.products, tile
        assert kernel.count("WARPGROUP.DEPBAR") == tile.waits, tile
        assert kernel.count("HMMA", "LDSM") == 0, tile


def test_sums_stay_in_registers(tiled: dict[Tile, Code]) -> None:
    for tile, kernel in tiled.items():
        assert kernel.highest_register < REGISTERS, tile
        assert kernel.count("STL", "LDL") == 0, tile
        # The producer gives registers, and consumers of every kind take them at one place.
        assert kernel.count("USETMAXREG") == 2, tile


def test_tiles_come_by_the_copy_engine(tiled: dict[Tile, Code]) -> None:
    for tile, kernel in tiled.items():
        assert kernel.count("UTMALDG") > 0, tile
        assert kernel.count("LDGSTS") == 0, tile


def test_only_the_barriers_of_the_cluster_wait_for_the_memory_of_the_gpu(tiled) -> None:
    """They stand around all work. Releasing a buffer to the other block must not cost as much."""
    for tile, kernel in tiled.items():
        fences = [i for i in kernel.places("MEMBAR") if "GPU" in kernel.instructions[i]]
        products = kernel.places("HGMMA")
        assert len(fences) == 2, tile
        assert not any(products[0] < fence < products[-1] for fence in fences), tile


def test_the_combination_is_small(code: list[Code]) -> None:
    combine = [kernel for kernel in code if f"{NAME}_combine" in kernel.name]
    assert len(combine) == 2
    assert [k for k in combine if k.count("HGMMA", "STL", "LDL") or k.highest_register >= 64] == []


MANGLED = "_ZN5ocnet30oc_attention_hopper_bwd_kernelINS_13HopperBwdTileINS_8BFloat16ELi128ELi256E"


def test_the_reader_of_names() -> None:
    role = "LNS_10HopperRoleE0E"
    assert tile_of(f"{MANGLED}{role}EEEvT_") == Tile("BFloat16", "both", 128, 256, 64)
    assert tile_of(f"{MANGLED}{role}LNS_12HopperSourceE0EEE") == tile_of(f"{MANGLED}{role}EE")
    assert tile_of(f"{MANGLED}{role}LNS_12HopperSourceE2EEE") is None
    wide = MANGLED.replace("13HopperBwdTile", "17HopperBwdWideTile").replace("Li256", "Li128")
    assert tile_of(f"{wide}EEvT_") == Tile("BFloat16", "wide", 128, 128, 48)
    query = MANGLED.replace("13HopperBwdTile", "15HopperQueryTile")
    assert tile_of(f"{query}Li48EEEEvT_") == Tile("BFloat16", "queries", 128, 256, 48)
    assert tile_of("_ZN5ocnet38oc_attention_hopper_bwd_combine_kernelINS_7Float16EEE") is None
