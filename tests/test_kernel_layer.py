# SPDX-License-Identifier: MIT
"""Kernels see the hardware through csrc/common only, where every primitive has both of its forms."""

import re
from pathlib import Path

import pytest

from tools import generate_wgmma

CSRC = Path(__file__).resolve().parent.parent / "csrc"
KERNELS = sorted([*CSRC.glob("*.cu"), *CSRC.glob("*.cuh")])
PRIMITIVES = sorted(
    [CSRC / "common" / f"{name}.cuh" for name in ("device", "cluster", "atomics")]
    + [*(CSRC / "common" / "ptx").glob("*.cuh")]
)
PRIMITIVES.remove(generate_wgmma.HEADER)  # the text of what wgmma.cuh has in both forms
HARDWARE = re.compile(
    r"\b(asm|threadIdx|blockIdx|blockDim|gridDim|warpSize|__global__|__device__|__shared__"
    r"|__launch_bounds__|__grid_constant__|__sync\w+|__shfl\w*|__ballot\w*|__threadfence\w*"
    r"|memcpy|memset|memmove"  # calls that the emulator does not see
    r"|__nanosleep|__cvta\w+|__ldg|__float2\w+|__\w+2float\w*|atomic[A-Z]\w*|cooperative_groups)\b"
    r"|<<<"
)
# A piece of the device forms that kernels do not call.
HELPERS = {"map_address"}


def hardware_names(source: str) -> set[str]:
    code = re.sub(r"//[^\n]*", "", source)
    return {found[0] for found in HARDWARE.finditer(code)}


def forms(source: str) -> tuple[set[str], set[str]]:
    """Return the names of the functions before and after the ``#else`` of ``__CUDACC__``."""
    device, emulated = [], []
    for part in re.findall(
        r"^#if defined\(__CUDACC__\)\n(.*?)^#else\n(.*?)^#endif", source, re.M | re.S
    ):
        device.append(part[0])
        emulated.append(part[1])
    if not device:
        return set(), set()
    pattern = r"OCNET_(?:DEVICE|EMULATED)\s+(?:[\w:]+[\s*&]+)+?(\w+)\("
    return set(re.findall(pattern, "".join(device))), set(re.findall(pattern, "".join(emulated)))


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_kernels_touch_no_hardware_themselves(path: Path) -> None:
    assert hardware_names(path.read_text()) == set()


@pytest.mark.parametrize("path", PRIMITIVES, ids=lambda path: path.name)
def test_every_primitive_has_both_forms(path: Path) -> None:
    device, emulated = forms(path.read_text())
    assert device, "no primitive found"
    assert device - HELPERS <= emulated


@pytest.mark.parametrize("path", PRIMITIVES, ids=lambda path: path.name)
def test_primitives_name_their_section_of_the_isa(path: Path) -> None:
    assert "(ISA: " in path.read_text()


def test_the_instructions_are_those_of_the_generator(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert generate_wgmma.main(["--check"]) == 0
    monkeypatch.setattr(generate_wgmma, "HEADER", tmp_path / "other.cuh")
    assert generate_wgmma.main([]) == 0
    assert generate_wgmma.HEADER.read_text() == generate_wgmma.header()
    generate_wgmma.HEADER.write_text(generate_wgmma.header().replace("%127", "%126"))
    assert generate_wgmma.main(["--check"]) == 1
    assert generate_wgmma.main(["--chekc"]) == 2


def test_the_readers_see_what_they_look_for() -> None:
    assert hardware_names("// asm\nint i = threadIdx.x; kernel<<<1, 2>>>();") == {
        "threadIdx",
        "<<<",
    }
    source = (
        "#if defined(__CUDACC__)\nOCNET_DEVICE int a() {}\ntemplate <int k>\nOCNET_DEVICE void b() {}\n"
        "#else\nOCNET_EMULATED int a() {}\n#endif\n"
    )
    assert forms(source) == ({"a", "b"}, {"a"})
