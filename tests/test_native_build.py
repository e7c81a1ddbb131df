# SPDX-License-Identifier: MIT
"""What the build decides, what it says when it cannot, and what it left behind."""

import importlib.util
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from ocnet.ops import _extension

ROOT = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("native_build", ROOT / "tools" / "native_build.py")
assert _spec is not None
assert _spec.loader is not None
native_build = importlib.util.module_from_spec(_spec)
sys.modules["native_build"] = native_build
_spec.loader.exec_module(native_build)
Toolchain = native_build.Toolchain

FULL = Toolchain("g++", "nvcc", Path("torch"))
NO_NVCC = Toolchain("g++", None, Path("torch"))
NO_CXX = Toolchain(None, "nvcc", Path("torch"))


def test_auto_builds_what_the_tools_allow() -> None:
    assert native_build.halves_to_build("auto", FULL) == (["cpu", "cuda"], [])
    halves, left_out = native_build.halves_to_build("auto", NO_NVCC)
    assert halves == ["cpu"]
    assert "no nvcc" in left_out[0]
    halves, left_out = native_build.halves_to_build("auto", NO_CXX)
    assert halves == []
    assert "no C++ compiler" in left_out[0]


def test_what_was_asked_for_is_built_or_refused() -> None:
    assert native_build.halves_to_build("none", FULL)[0] == []
    assert native_build.halves_to_build("cpu", FULL)[0] == ["cpu"]
    assert native_build.halves_to_build("cuda", FULL)[0] == ["cpu", "cuda"]
    with pytest.raises(native_build.BuildError, match=r"OCNET_BUILD=cuda must .* no nvcc"):
        native_build.halves_to_build("cuda", NO_NVCC)
    with pytest.raises(native_build.BuildError, match=r"OCNET_BUILD=cpu must .* no C\+\+ compiler"):
        native_build.halves_to_build("cpu", NO_CXX)


def test_an_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCNET_BUILD", "gpu")
    with pytest.raises(native_build.BuildError, match="OCNET_BUILD must be one of auto, none"):
        native_build.requested()


@pytest.mark.native
def test_a_failed_build_fits_one_screen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tools = native_build.find_toolchain()
    if tools.cxx is None or tools.torch is None:
        pytest.skip("no C++ compiler")
    source = tmp_path / "broken.cpp"
    source.write_text("this is not C++;\n" * 100)
    monkeypatch.setattr(native_build, "CPU_SOURCES", [str(source)])
    monkeypatch.setattr(native_build, "WORK", tmp_path / "work")
    with pytest.raises(native_build.BuildError, match="CPU library did not compile") as caught:
        native_build.build("cpu", tools, tmp_path / "library.so")
    lines = str(caught.value).splitlines()
    assert len(lines) < 40
    assert "OCNET_BUILD=none" in lines[-1]


def test_builds_in_one_folder_wait_for_each_other(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    now = fcntl.LOCK_EX | fcntl.LOCK_NB
    folder = tmp_path / "work"
    with (
        native_build.one_at_a_time(folder),
        (folder / "lock").open() as another,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(another, now)
    with (folder / "lock").open() as another:
        fcntl.flock(another, now)


def _library(half: str) -> Path:
    path = _extension._find(half)
    if path is None:
        pytest.skip(f"the {half} library is not built")
    return path


def _needed(path: Path) -> list[str]:
    if shutil.which("readelf") is None:
        pytest.skip("no readelf")
    text = subprocess.run(
        ["readelf", "-d", path], capture_output=True, text=True, check=True
    ).stdout
    return re.findall(r"NEEDED.*\[(.+)\]", text)


@pytest.mark.native
def test_no_python_in_the_libraries() -> None:
    for half in ("cpu", "cuda"):
        path = _library(half)
        assert ".abi3." in path.name
        assert not any("python" in name for name in _needed(path))
        if shutil.which("nm"):
            out = subprocess.run(
                ["nm", "-D", path], capture_output=True, text=True, check=True
            ).stdout
            assert not re.search(r"\bPy[A-Z_]", out)
            # Only the stable C interface of torch, no mangled C++ of it.
            assert not re.search(r"U _ZN?K?(2at|3c10)", out)


@pytest.mark.native
def test_the_cuda_library_asks_for_torchs_cuda_half() -> None:
    """Without this entry the loader cannot resolve the current stream under CUDA torch."""
    assert "libtorch_cuda.so" in _needed(_library("cuda"))
    assert not any("cuda" in name for name in _needed(_library("cpu")))


@pytest.mark.native
def test_the_cuda_library_is_left_alone_under_cpu_torch() -> None:
    import torch

    _library("cuda")
    if torch.version.cuda is not None:
        pytest.skip("torch has CUDA")
    assert "has no CUDA" in str(_extension.load("cuda").problem)


SCRIPT = """
import sys, torch
torch.ops.load_library(sys.argv[1])
if torch.version.cuda is not None and sys.argv[2]:
    torch.ops.load_library(sys.argv[2])
q, v = torch.randn(1, 37, 8), torch.randn(1, 37, 5)
out, lse = torch.full((1, 37, 5), float("nan")), torch.full((1, 37), float("nan"))
{call}
want = torch.softmax(q @ q.mT * 0.3, -1) @ v
assert torch.allclose(out, want, atol=1e-5), (out - want).abs().max()
print("ok", torch.__version__)
"""


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.parametrize("version", ["2.10.0", "2.11.0"])
def test_the_same_binary_under_another_torch(version: str, tmp_path: Path) -> None:
    """Downloads a torch of another version into a scratch environment and loads both halves there."""
    cpu, cuda = _library("cpu"), _extension._find("cuda")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", f"torch=={version}", "numpy"], check=True)
    call = "torch.ops.ocnet_cpu.oc_attention_fwd(q, None, v, 0.3, False, out, lse, None)"
    script = tmp_path / "load.py"
    script.write_text(SCRIPT.format(call=call))
    done = subprocess.run(
        [python, script, str(cpu), str(cuda) if cuda is not None else ""],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"ok {version}")
