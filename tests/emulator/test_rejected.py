# SPDX-License-Identifier: MIT
"""What no compiler lets through: uses of wgmma that no instruction stands for."""

import subprocess
from pathlib import Path

import pytest

from tests.emulator import build

pytestmark = pytest.mark.native

SOURCE = """\
#include "common/ptx/wgmma.cuh"

using namespace ocnet;
constexpr auto channels = ptx::Contiguous::kChannels;
constexpr auto tokens = ptx::Contiguous::kTokens;

void product(float (&d)[{sums}], const uint32_t (&a)[4]) {{
  (void)a;
  ptx::wgmma<{arguments}>(d, {a}, uint64_t{{0}}, true);
}}
"""
CONTIGUOUS = "operands that are not of 16 bits must have contiguous channels"
WIDTH = "N is 8, 16, .. 256"


def _compiled(folder: Path, arguments: str) -> subprocess.CompletedProcess[str]:
    """A is in registers where only one operand has a layout."""
    _, columns, *layouts = arguments.split(", ")
    a = "a" if len(layouts) == 1 else "uint64_t{0}"
    source = folder / "product.cpp"
    source.write_text(SOURCE.format(sums=int(columns) // 2, arguments=arguments, a=a))
    compiler, _ = build.find_compiler()
    command = [compiler, *build.FLAGS, f"-I{build.ROOT / 'csrc'}", "-fsyntax-only", str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        "Float8, 64, channels, channels",
        "Float8, 8, channels",
        "ptx::TFloat32, 256, channels, channels",
        "BFloat16, 16, tokens, tokens",
        "Float16, 16, tokens",
    ],
)
def test_legal_products_compile(emulator, tmp_path, arguments):
    done = _compiled(tmp_path, arguments)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("Float8, 64, tokens, channels", CONTIGUOUS),
        ("Float8, 64, channels, tokens", CONTIGUOUS),
        ("Float8, 64, tokens", CONTIGUOUS),
        ("ptx::TFloat32, 64, tokens, channels", CONTIGUOUS),
        ("ptx::TFloat32, 64, tokens", CONTIGUOUS),
        ("BFloat16, 12, channels, channels", WIDTH),
        ("Float8, 264, channels", WIDTH),
    ],
)
def test_illegal_products_do_not(emulator, tmp_path, arguments, words):
    done = _compiled(tmp_path, arguments)
    assert done.returncode != 0
    assert words in done.stderr
