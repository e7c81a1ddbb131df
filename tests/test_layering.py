# SPDX-License-Identifier: MIT
"""Imports point one way; docs/architecture.md draws the arrow."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ocnet"
LADDER = ("ops", "modules", "heads", "models", "engine", "cli")
SIDE = ("losses", "data", "evaluation", "report")
EVERYWHERE = ("_env", "_version")


def allowed(layer: str) -> set[str]:
    if layer in SIDE:
        return {*SIDE, *EVERYWHERE}
    if layer == "testing":
        return {"testing", "ops", *EVERYWHERE}
    if layer in EVERYWHERE:
        return set()
    below = set(LADDER[: LADDER.index(layer) + 1])
    # The side packages are used by engine and above only.
    return below | set(EVERYWHERE) | (set(SIDE) if layer in ("engine", "cli") else set())


def imports(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == "ocnet":
            names = [f"ocnet.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("ocnet.")}
    return found


def violations(layer: str, source: str) -> set[str]:
    return imports(ast.parse(source)) - allowed(layer) - {"__version__"}


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_left(path: Path) -> None:
    layer = path.relative_to(PACKAGE).parts[0]
    assert violations(layer, path.read_text()) == set()


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("ops", "from ocnet.modules.abn import ABN"),
        ("losses", "import ocnet.ops"),
        ("models", "from ocnet import engine"),
        ("testing", "def f():\n    from ocnet.heads import BaseOCHead"),
    ],
)
def test_a_wrong_import_is_caught(layer: str, source: str) -> None:
    assert violations(layer, source)


def mutual(imported: dict[str, str]) -> set[tuple[str, str]]:
    """Return the pairs of ops that import each other, given the text of each."""
    used = {
        (name, other)
        for name, text in imported.items()
        for other in imported
        if other != name and re.search(rf"^(from|import) ocnet\.ops\.{other}\b", text, re.M)
    }
    return {(name, other) for name, other in used if (other, name) in used}


def test_no_two_ops_import_each_other() -> None:
    """What two ops share is beside their folders; an op may build on another one."""
    folders = {p.parent for p in (PACKAGE / "ops").glob("*/functional.py")}
    texts = {p.name: "\n".join(f.read_text() for f in p.rglob("*.py")) for p in folders}
    assert "partitioned_attention" in texts
    assert mutual(texts) == set()
    planted = {
        "a": "from ocnet.ops.b import x",
        "b": "import ocnet.ops.a.y",
        "c": "import ocnet.ops.b",
    }
    assert mutual(planted) == {("a", "b"), ("b", "a")}


def test_every_folder_has_a_place() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders == {*LADDER, *SIDE, "testing"}


def _fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_does_not_import_torch() -> None:
    assert _fresh("import ocnet, sys; print('torch' in sys.modules)") == "False\n"


def test_importing_the_ops_loads_no_library_and_no_triton() -> None:
    code = (
        "import ocnet.ops, sys; from ocnet.ops import _extension; "
        "print(_extension.load.cache_info().currsize, 'triton' in sys.modules)"
    )
    assert _fresh(code) == "0 False\n"
