# SPDX-License-Identifier: MIT
"""The seed's scripts, whole, on a small tree; and the Dockerfile, which is made of the README's commands."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.data.trees import cityscapes_tree

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "--model.name=tiny_base_oc",
    "--model.norm=batchnorm",
    "--model.weights=null",
    "--data.workers=0",
    "--data.augment.crop=[33,41]",
    "--train.steps=2",
    "--train.batch_size=2",
    "--train.device=cpu",
)


@pytest.mark.parametrize("script", ["run_base_oc.sh", "run_asp_oc.sh"])
def test_a_script_trains_scores_and_submits(tmp_path: Path, script: str) -> None:
    cityscapes_tree(tmp_path / "data")
    run = tmp_path / "run"
    environment = {**os.environ, "PYTHON": sys.executable, "RUN": str(run), "GPUS": "1"}
    done = subprocess.run(
        [ROOT / script, f"--data.root={tmp_path / 'data'}", *SMALL],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"eval_val.csv", "eval_train.csv", "submit_test.zip", "run.json"} <= {
        path.name for path in run.iterdir()
    }
    with zipfile.ZipFile(run / "submit_test.zip") as archive:
        assert len(archive.namelist()) == len(
            list((tmp_path / "data/leftImg8bit/test").rglob("*.png"))
        )


def test_a_script_stops_at_the_first_thing_that_fails(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "run_base_oc.sh", f"--data.root={tmp_path / 'nothing'}", *SMALL],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHON": sys.executable, "RUN": str(tmp_path / "run")},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("ocnet train: ")
    assert "Cityscapes is had at https://" in done.stderr
    assert done.stderr.endswith("; data.root says where the data is\n")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_dockerfile_runs_the_commands_of_the_readme() -> None:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    commands = [line.removeprefix("RUN ") for line in text.splitlines() if line.startswith("RUN ")]
    ours = [command for command in commands if not command.startswith("apt-get")]
    assert ours
    readme = (ROOT / "README.md").read_text()
    for command in ours:
        assert re.search(rf"^{re.escape(command)}\b", readme, re.M), command
    assert 'ENTRYPOINT ["ocnet"]' in text
