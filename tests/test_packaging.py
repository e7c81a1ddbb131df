# SPDX-License-Identifier: MIT
"""What the project's files promise: metadata, licence lines, and no trace of anybody's machine."""

import re
import subprocess
from pathlib import Path

import pytest

import ocnet

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {".py", ".cpp", ".cu", ".cuh", ".h"}


def _tracked() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.splitlines()]


def test_every_source_names_its_licence() -> None:
    bare = [
        str(path.relative_to(ROOT))
        for path in _tracked()
        if path.suffix in SOURCES and "SPDX-License-Identifier: MIT" not in path.read_text()[:200]
    ]
    assert bare == []


def test_no_source_is_a_book() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in _tracked()
        if path.suffix in SOURCES and (lines := len(path.read_text().splitlines())) > 600
    }
    assert long == {}


def test_no_machine_path_anywhere() -> None:
    pattern = re.compile(r"(?<![\w.])/(?:root|home|work|farm)/\w+")
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in _tracked()
        if path.suffix in SOURCES | {".md", ".toml", ".yaml", ".txt", ".jsonl", ""}
        for match in [pattern.search(path.read_text(errors="ignore"))]
        if match is not None
    ]
    assert found == []


def test_version_has_a_changelog_entry() -> None:
    assert f"## {ocnet.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_documented_environment_variables_are_the_ones_read() -> None:
    named = set(re.findall(r"`(OCNET_[A-Z_]+)`", (ROOT / "docs" / "environment.md").read_text()))
    code = "".join(
        (ROOT / name).read_text() for name in ("ocnet/_env.py", "tools/native_build.py", "setup.py")
    )
    assert named == set(re.findall(r"\bOCNET_(?!NAMESPACE|KEY)[A-Z_]+\b", code))
