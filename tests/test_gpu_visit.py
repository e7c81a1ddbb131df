# SPDX-License-Identifier: MIT
"""The script of a visit to a GPU: stages in order, limits, and going on after failures."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "gpu_visit.sh"
PACKED = [
    "ocnet/_C_cuda.abi3.so",
    *(f"build/{kind}/digest/library.so" for kind in ("probes", "variants", "backward_variants")),
]
# In the place of Python: what it was asked for, and what comes of it.
STAND_IN = """#!/usr/bin/env bash
echo "asked: $*"
case "$*" in
  *hopper.ladder*) exit 1 ;;
  *hopper.experiments*) exec sleep 60 ;;
esac
"""


Visit = Callable[..., tuple[int, str]]


@pytest.fixture
def visit(tmp_path: Path) -> Visit:
    if shutil.which("timeout") is None or shutil.which("bash") is None:
        pytest.skip("the script needs bash and timeout")
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def run(*stages: str, seconds: int = 60, tools: Path | None = None) -> tuple[int, str]:
        settings = {"PYTHON": str(python), "OUT": str(out), "VISIT_SECONDS": str(seconds)}
        if tools is not None:
            settings["PATH"] = f"{tools}:{os.environ['PATH']}"
        settings |= {name: value for name, value in os.environ.items() if name not in settings}
        command = [SCRIPT, *stages]
        done = subprocess.run(
            command, env=settings, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout

    return run


def test_stages_go_on_after_failures(visit: Visit, tmp_path: Path) -> None:
    status, said = visit("steps", "ladder", "ladder_backward", "build", "benchmarks")
    assert status == 1
    summary = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    states = [line.rpartition(" after")[0] for line in summary]
    assert states == [
        "build: passed",
        "ladder: failed (1)",
        "ladder_backward: passed",
        "benchmarks: passed",
        "steps: passed",
    ]
    log = (tmp_path / "out" / "visit.log").read_text()
    assert "asked: -m tests.emulator.build" in log
    assert "asked: -m benchmarks.hopper.backward_ladder --most" in log
    assert "--cases base-97-n4 base-97-n2" in log
    assert said.endswith("\n".join(summary) + "\n")


def test_a_stage_that_hangs_is_stopped_and_the_rest_is_told(visit: Visit, tmp_path: Path) -> None:
    status, _ = visit("experiments", "steps", seconds=5)
    assert status == 1
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert "experiments: stopped at its limit" in summary
    assert "steps: not tried, no time is left" in summary


def test_both_passes_are_profiled_and_sanitized(visit: Visit, tmp_path: Path) -> None:
    for tool in ("ncu", "compute-sanitizer"):
        stand_in = tmp_path / tool
        stand_in.write_text('#!/usr/bin/env bash\necho "tool: $*"\n')
        stand_in.chmod(0o755)
    status, _ = visit("profile", "sanitize", tools=tmp_path)
    assert status == 0
    log = (tmp_path / "out" / "visit.log").read_text()
    for kernel, program in (("fwd", "experiments"), ("bwd_kernel", "backward_experiments")):
        profiled = f"--kernel-name regex:hopper_{kernel} .* -m benchmarks.hopper.{program} "
        assert re.search(profiled, log), kernel
    sanitized = (tmp_path / "out" / "sanitizer.txt").read_text()
    for check in ("memcheck", "synccheck", "racecheck"):
        for program in ("ladder", "backward_ladder"):
            assert re.search(f"--tool {check} .* -m benchmarks.hopper.{program} ", sanitized)
            assert f"{check} of the {program}: 0" in sanitized


def test_what_was_built_elsewhere_is_unpacked(tmp_path: Path, visit: Visit) -> None:
    """But over nothing that is newer."""
    here, there = tmp_path / "here", tmp_path / "there"
    for root in (here, there):
        (root / "ocnet").mkdir(parents=True)
        shutil.copytree(SCRIPT.parent, root / "tools")
    for name in PACKED:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    pack = here / "build" / "gpu.tar.gz"
    settings = {**os.environ, "PYTHON": str(tmp_path / "python")}
    subprocess.run([here / "tools" / "gpu_pack.sh"], env=settings, check=True, capture_output=True)
    newer = there / PACKED[0]
    newer.write_text("newer")
    os.utime(newer, (pack.stat().st_mtime + 60,) * 2)
    settings |= {"PACK": str(pack), "OUT": str(tmp_path / "out")}
    script = there / "tools" / SCRIPT.name
    subprocess.run([script, "steps"], env=settings, check=True, capture_output=True, timeout=60)
    assert newer.read_text() == "newer"
    for name in PACKED[1:]:
        assert (there / name).read_text() == name


def test_nothing_is_packed_without_a_library(tmp_path: Path) -> None:
    shutil.copytree(SCRIPT.parent, tmp_path / "tools")
    script = tmp_path / "tools" / "gpu_pack.sh"
    done = subprocess.run([script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no CUDA library to pack" in done.stderr


def test_what_it_asks_of_the_programs_is_there() -> None:
    from benchmarks import baselines, cases
    from benchmarks.hopper import backward_experiments, backward_ladder, experiments, ladder

    text = SCRIPT.read_text()
    known = {case.name for case in cases.CASES}
    dense = text.partition('dense="')[2].partition('"')[0].replace("\\\n", "").split()
    assert {*dense} <= known
    for line in text.splitlines():
        words = line.partition("--forms ")[2].rstrip("; }\\").split()
        assert {*words} <= {*baselines.NAMES}, line
    for each in (experiments.EXPERIMENTS, backward_experiments.EXPERIMENTS):
        assert any(experiment.question == "shipped" for experiment in each)
    for word in ("one step", "two steps", "tiles cut anywhere", "groups: cells"):
        assert any(word in rung.name for rung in ladder.RUNGS)
        assert any(word in rung.name for rung in backward_ladder.RUNGS)
