# SPDX-License-Identifier: MIT
"""Builds the test module of csrc/ with the C++ compiler at hand, once per state of its sources."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
MODULE = "ocnet_csrc_tests"
# The executor switches fibers by longjmp, which fortified libraries refuse.
FLAGS = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-fPIC", "-shared", "-U_FORTIFY_SOURCE"]


def _sources() -> list[Path]:
    return sorted(
        [*CSRC.glob("*.cuh"), *CSRC.glob("common/*"), *HERE.glob("*.h"), *HERE.glob("*.cpp")]
    )


def _digest(compiler: str) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(version + sys.version.encode() + " ".join(FLAGS).encode())
    for path in _sources():
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _build(compiler: str, includes: list[str], target: Path) -> None:
    # Under a name of its own first: parallel runs may share the folder.
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    command = [compiler, *FLAGS, *[f"-I{path}" for path in includes], str(HERE / "bindings.cpp")]
    command += ["-o", str(unfinished)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        pytest.fail(f"the test module of csrc/ does not compile:\n{result.stderr[-4000:]}", False)
    unfinished.replace(target)


@pytest.fixture(scope="session")
def csrc(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The functions of csrc/common, and its kernels on an executor of blocks."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler found")
    cache = getattr(request.config, "cache", None)
    folder = cache.mkdir("csrc") if cache is not None else tmp_path_factory.mktemp("csrc")
    target = folder / f"{MODULE}_{_digest(compiler)}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not target.exists():
        python = sysconfig.get_path("include")
        _build(compiler, [str(CSRC), str(HERE), pybind11.get_include(), python], target)
    spec = importlib.util.spec_from_file_location(MODULE, target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
