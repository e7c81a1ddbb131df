# SPDX-License-Identifier: MIT
"""The demo job: its verdict on planted results, and every file of a fast run."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ocnet.cli.demo import main
from ocnet.engine import demo
from ocnet.engine.config_files import load_config
from ocnet.engine.demo import DemoOptions, Findings, HeadScore, cost_sentences, head_config
from ocnet.engine.demo_pictures import query_points
from ocnet.engine.measure import Measurement
from ocnet.engine.meters import Timing
from ocnet.engine.workload import Workload
from ocnet.ops import Explanation

ROOT = Path(__file__).resolve().parents[2]
EXPLANATION = Explanation("oc_attention", "auto", "cpu", {"cpu": "taken"})


def findings(context: tuple[float, float], local: tuple[float, float]) -> Findings:
    return Findings(
        "a device", EXPLANATION, HeadScore(*context, 0.9), HeadScore(*local, 0.9), (), 1.0
    )


@pytest.mark.parametrize(
    ("context", "local", "wins"),
    [
        ((0.75, 0.80), (0.50, 0.20), True),
        ((0.625, 0.375), (0.50, 0.25), True),  # exactly the factor
        ((0.59, 0.80), (0.50, 0.20), False),  # too little mIoU
        ((0.75, 0.29), (0.50, 0.20), False),  # too few flat pixels
        ((0.50, 0.20), (0.75, 0.80), False),
        ((float("nan"), 0.80), (0.50, 0.20), False),
    ],
)
def test_verdict_and_exit_status(
    context: tuple[float, float],
    local: tuple[float, float],
    wins: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planted = findings(context, local)
    asked: list[DemoOptions] = []

    def run(options: DemoOptions) -> Findings:
        asked.append(options)
        return planted

    monkeypatch.setattr(demo, "run_demo", run)
    assert planted.context_wins is wins
    assert main(["--out", "elsewhere", "--steps", "7", "--seed", "3"]) == (0 if wins else 1)
    assert asked == [DemoOptions(Path("elsewhere"), 7, 3, False, "auto")]
    said = " ".join(planted.sentences())
    assert ("did NOT clearly beat" in said) is not wins
    assert "back end 'cpu'" in said


def planted_measurement(form: str, side: int, saved: int, status: str = "ok") -> Measurement:
    workload = Workload(1, side, side)
    if status != "ok":
        return Measurement(workload, form, "step", status, 1 << 40, "needs about 1024.00 GiB")
    times = Timing(1.0, 2.0, 3.0, 5)
    return Measurement(workload, form, "step", "ok", 0, "", times, saved, saved, 2 * saved)


def test_costs_are_compared_at_the_largest_size_that_both_ran() -> None:
    measurements = [
        planted_measurement("fused", 24, 1 << 20),
        planted_measurement("fused", 48, 2 << 20),
        planted_measurement("fused", 97, 8 << 20),
        planted_measurement("naive", 24, 1 << 20),
        planted_measurement("naive", 48, 25 << 20),
        planted_measurement("naive", 97, 0, "too large"),
    ]
    compared, missing = cost_sentences(measurements)
    assert compared.startswith("At 48 x 48 tokens")
    assert "2.0 MiB" in compared
    assert "(12.5 times as much)" in compared
    assert missing == "naive at 97 x 97: too large, needs about 1024.00 GiB."
    assert cost_sentences([]) == []


@pytest.mark.parametrize("name", ["tiny_base_oc", "tiny_local"])
def test_heads_are_trained_as_the_config_files_say(name: str) -> None:
    filed = load_config(ROOT / "configs" / "mosaics" / f"{name}.yaml")
    job = head_config(DemoOptions(out=Path("x")), name)
    own = {"run_dir": filed.train.run_dir, "resume": filed.train.resume}
    assert job.train.run_dir == str(Path("x") / name)
    assert dataclasses.replace(job, train=dataclasses.replace(job.train, **own)) == filed


def test_heads_differ_in_nothing_but_the_network() -> None:
    options = DemoOptions(seed=5)
    context, local = (head_config(options, name) for name in demo.HEADS.values())
    assert context.model != local.model
    assert (context.data, context.optim) == (local.data, local.optim)
    same_folder = dataclasses.replace(context.train, run_dir=local.train.run_dir)
    assert same_folder == local.train
    assert context.train.seed == context.data.mosaics.seed == 5


def test_queries_are_deep_in_flat_regions_first() -> None:
    label = torch.zeros(20, 30, dtype=torch.int64)
    label[:, 15:] = 1
    flat = torch.zeros(20, 30, dtype=torch.bool)
    flat[2:9, 2:9] = True  # class 0
    flat[:, 19:] = True  # class 1, 11 columns
    points = query_points(label, flat, 3).tolist()
    assert points[1] == [5, 5]
    assert points[0][1] == 24
    assert 5 <= points[0][0] <= 14
    assert not flat[tuple(points[2])]
    assert query_points(label, torch.zeros_like(flat), 3).tolist() == []


def test_missing_package_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"demo: matplotlib must be installed.*ocnet\[demo\]"):
        demo.run_demo(DemoOptions(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# Where no library is built, the job says so itself.
@pytest.mark.filterwarnings("ignore:oc_attention. no compiled back end")
def test_fast_run_writes_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    said: list[str] = []
    found = demo.run_demo(DemoOptions(out, steps=2, fast=True, device="cpu"), said.append)

    for name in ("predictions", "attention", "curves", "memory", "speed"):
        picture = np.asarray(Image.open(out / f"{name}.png").convert("L"))
        assert min(picture.shape) > 400
        assert picture.std() > 5
    with (out / "per_class.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["head"] for row in table] == ["object context"] * 5 + ["local control"] * 5
    assert all(0 <= float(row["iou"]) <= 1 for row in table if row["iou"] != "nan")

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    kinds = [line["kind"] for line in lines]
    assert kinds.count("training") == 2 * 1
    assert kinds.count("measurement") == 3 * 2 * 2
    assert lines[-1]["kind"] == "findings"
    assert lines[-1]["context_wins"] is found.context_wins
    assert lines[-1]["object context"]["miou"] == found.object_context.miou
    assert {m.status for m in found.measurements} == {"ok"}

    page = (out / "report.html").read_text(encoding="utf-8")
    assert len(re.findall(r'src="data:image/png;base64,', page)) == 5
    assert found.sentences()[1] in page
    text = "\n".join(said)
    assert f"oc_attention(backend='auto') -> {found.explanation.chosen}" in text
    assert "Mean IoU on unseen mosaics" in text
    assert "report.html" in said[-1]
    # The trainer's own lines, since this is no terminal.
    assert "local control  step 2/2" in capsys.readouterr().out
