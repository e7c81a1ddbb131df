# SPDX-License-Identifier: MIT
"""Adds the native libraries to the package; everything else is in pyproject.toml.

``OCNET_BUILD``: ``auto`` (default: what the tools here allow), ``none``, ``cpu``, ``cuda`` (both, or fail).
"""

import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import native_build  # noqa: E402


class NativeLibrary(Extension):
    """A shared library without Python in it, built by ninja."""

    def __init__(self, half: str, sources: list[str]) -> None:
        super().__init__(f"ocnet._C_{half}", sources=sources, py_limited_api=True)
        self.half = half


class BuildNative(build_ext):
    """Hands each library to ninja instead of to setuptools' compiler."""

    def build_extensions(self) -> None:
        """Build all, or fail with one screen of text."""
        tools = native_build.find_toolchain()
        if tools.torch is None:
            raise SystemExit("setup: torch >= 2.10 must be installed to build, got none")
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name)).resolve()
            try:
                native_build.build(extension.half, tools, target)
            except native_build.BuildError as error:
                raise SystemExit(str(error)) from None


def _plan() -> dict[str, Any]:
    try:
        tools = native_build.find_toolchain()
        halves, left_out = native_build.halves_to_build(native_build.requested(), tools)
    except native_build.BuildError as error:
        raise SystemExit(str(error)) from None
    for line in left_out:
        print(f"ocnet: {line}", file=sys.stderr)
    sources = {"cpu": native_build.CPU_SOURCES, "cuda": native_build.CUDA_SOURCES}
    return {
        "ext_modules": [NativeLibrary(half, sources[half]) for half in halves],
        # Only where the environment has no torch whose headers could be used.
        "setup_requires": ["torch>=2.10"] if halves and tools.torch is None else [],
    }


setup(
    cmdclass={"build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
    **_plan(),
)
