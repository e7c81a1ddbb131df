# SPDX-License-Identifier: MIT
"""How the emulator is built: what is said without a compiler, and what is compiled again."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.emulator import build

pytestmark = pytest.mark.native


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, emulator) -> Path:
    """The only source of a library that is built instead; without tools, ``emulator`` skips."""
    path = tmp_path / "some where" / "library.cpp"
    path.parent.mkdir()
    path.with_name("part.h").write_text("inline int one() { return 1; }\n")
    path.write_text('#include "part.h"\nint two() { return 2 * one(); }\n')
    monkeypatch.setattr(build, "WORK", tmp_path / "work")
    monkeypatch.setattr(build, "REGISTRATION", path)
    monkeypatch.setattr(build, "PLAIN", [])
    monkeypatch.setattr(build, "INSTRUMENTED", [])
    monkeypatch.setattr(build, "OPS", [])
    return path


def test_no_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(build.UnavailableError, match="needs g\\+\\+ 11 or later"):
        build.build()


@pytest.mark.parametrize("macros", ["__GNUC__ 10", "__GNUC__ 13\n#define __clang__ 1"])
def test_a_compiler_without_the_flags_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, macros: str
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(f"#!/bin/sh\necho '#define {macros}'\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(build.UnavailableError, match="g\\+\\+"):
        build.build()


@pytest.mark.parametrize("package", ["pybind11", "ninja"])
def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else found(name)
    )
    with pytest.raises(build.UnavailableError, match=f"the package {package}"):
        build.build()


def test_missing_headers_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(build.UnavailableError, match=r"Python\.h"):
        build.build()


def test_only_what_changed_is_built_again(source: Path) -> None:
    library = build.build()
    first = library.stat().st_mtime_ns
    assert build.build() == library
    assert library.stat().st_mtime_ns == first
    source.with_name("part.h").write_text("inline int one() { return 10; }\n")
    assert build.build() == library
    assert library.stat().st_mtime_ns > first


def test_builds_may_start_at_once(source: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: build.build(), range(2))
    assert first == second
    log = first.with_name(".ninja_log").read_text()
    assert log.count("\tlibrary.o\t") == 1


def test_an_error_shows_what_the_compiler_says(source: Path) -> None:
    source.write_text("int two() { return undeclared_name; }\n")
    with pytest.raises(build.BuildError, match="undeclared_name"):
        build.build()
