# SPDX-License-Identifier: MIT
"""The benchmark program: cases, gate, rows and tables; no times are judged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import baselines, gate, rates, report, run
from benchmarks.cases import CASES, QUICK, Case, select
from ocnet.engine.gather_workload import GatherWorkload
from ocnet.engine.workload import Form, Workload
from ocnet.ops.oc_attention.problem import MAX_CHANNELS
from ocnet.ops.oc_attention.reference import naive_attention
from ocnet.ops.spatial_gather.problem import MAX_CHANNELS as MAX_GATHERED
from ocnet.ops.spatial_gather.problem import MAX_REGIONS
from ocnet.ops.spatial_gather.reference import naive_gather

SMALL = Workload(2, 6, 7, E=16, Ev=24)
GATHER = GatherWorkload(2, 6, 7, C=16, K=5)
pytestmark = pytest.mark.filterwarnings("ignore:oc_attention. no compiled back end")


def test_cases_are_distinct_and_legal() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    for case in CASES:
        for device in ("cpu", "cuda"):
            for workload in case.on(device):
                assert workload.device == device
                if isinstance(workload, GatherWorkload):
                    assert workload.C <= MAX_GATHERED
                    assert workload.K <= MAX_REGIONS
                else:
                    assert max(workload.E, workload.Ev) <= MAX_CHANNELS
                assert workload.io_bytes("step") > 0


def test_every_floor_of_the_study_has_its_case() -> None:
    # forward TFLOP of the dense rows, by case
    table = {
        "base-97-n1": 0.091,
        "base-97-n2": 0.181,
        "base-97-n4": 0.363,
        "base-97-n8": 0.725,
        "base-97-v512-n4": 0.544,
        "pooled-48-n8": 0.043,
        "pooled-49-n8": 0.047,
        "whole-128x256": 1.100,
        "whole-128x256-v512": 1.649,
        "asp-48-n8": 0.033,
        "asp-97-n4": 0.272,
        "isa-long-97-n4": 0.007,
        "isa-short-97-n4": 0.003,
        "isa-long-128x256": 0.017,
        "ocr-97-k19-n4": 0.001,
        "ocr-97-k150-n4": 0.006,
        "ocr-128x256-k19": 0.001,
    }
    for name, tflop in table.items():
        (case,) = select([name], "cuda", quick=False)
        assert case.sizes.flops("forward") / 1e12 == pytest.approx(tflop, abs=6e-4)


def test_selection() -> None:
    assert [case.name for case in select([], "cpu", quick=True)] == list(QUICK)
    assert all(case.cpu for case in select([], "cpu", quick=False))
    with pytest.raises(ValueError, match=r"--cases must be of .* on cpu, got base-97-n8"):
        select(["base-97-n8"], "cpu", quick=False)


@pytest.mark.parametrize("name", ["naive", "sdpa", "fused:reference"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shared", [True, False])
def test_right_forms_pass_the_gate(name: str, dtype: str, shared: bool) -> None:
    keys = {} if shared else {"Hk": 3, "Wk": 5}
    workload = Workload(2, 6, 7, E=16, Ev=24, dtype=dtype, shared=shared, **keys)
    verdict = gate.check(baselines.FORMS[name], gate.Expected.of(workload))
    assert verdict.ok, verdict


@pytest.mark.parametrize("name", ["fused", "fused:reference", "naive"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_right_gathers_pass_the_gate(name: str, dtype: str) -> None:
    workload = GATHER.on("cpu", dtype)
    verdict = gate.check(baselines.forms_of(workload)[name], gate.Expected.of(workload))
    assert verdict.ok, verdict


def gathered_off_in_one_region(features: Tensor, logits: Tensor) -> Tensor:
    wrong = torch.ones(logits.shape[1], 1)
    wrong[2] = 1.001
    return wrong * naive_gather(features, logits)


def no_gradient_to_logits(features: Tensor, logits: Tensor) -> Tensor:
    return naive_gather(features, logits.detach()) + 0 * logits.sum()


@pytest.mark.parametrize(
    ("gather", "worst"),
    [(gathered_off_in_one_region, None), (no_gradient_to_logits, "grad_logits")],
)
def test_wrong_gathers_do_not_pass_the_gate(gather: Any, worst: str | None) -> None:
    verdict = gate.check(Form("planted", gather), gate.Expected.of(GATHER))
    assert not verdict.ok
    assert worst is None or verdict.worst == worst


def off_in_scale(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return 1.001 * naive_attention(query, key, value)


def off_in_one_image(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    wrong = torch.ones(len(query), 1, 1, 1)
    wrong[-1] = 1.01
    return wrong * naive_attention(query, key, value)


def no_gradient_to_query(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return naive_attention(query.detach(), key, value)


def one_nan(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    out = naive_attention(query, key, value).clone()
    out[0, 0, 0, 0] = torch.nan
    return out


@pytest.mark.parametrize(
    ("attention", "worst"),
    [
        (off_in_scale, None),
        (off_in_one_image, None),
        (no_gradient_to_query, "grad_query"),
        (one_nan, "out"),
    ],
)
def test_wrong_forms_do_not_pass_the_gate(attention: Any, worst: str | None) -> None:
    verdict = gate.check(Form("planted", attention), gate.Expected.of(SMALL))
    assert not verdict.ok
    assert worst is None or verdict.worst == worst


def test_forms_refuse_with_a_sentence() -> None:
    forms = baselines.FORMS
    assert "CPU" in forms["flex"].refuses(SMALL)
    assert "CUDA tensors" in forms["fused:cuda"].refuses(SMALL)
    assert "CPU" in forms["compile"].refuses(Workload(1, 2, 2, dtype="bfloat16"))
    assert forms["fused"].refuses(SMALL) == ""
    assert baselines.backend_of("fused:reference", SMALL) == "reference"
    assert baselines.backend_of("naive", SMALL) is None
    gathers = baselines.forms_of(GATHER)
    assert "CUDA tensors" in gathers["fused:cuda"].refuses(GATHER)
    assert "1024 channels" in gathers["fused:cpu"].refuses(GatherWorkload(1, 2, 2, C=1025))
    assert gathers["fused"].refuses(GATHER) == ""
    assert baselines.backend_of("fused:reference", GATHER) == "reference"
    assert baselines.backend_of("naive", GATHER) is None


def test_every_way_to_gather_can_be_asked_for_by_name() -> None:
    assert baselines.forms_of(GATHER).keys() < baselines.FORMS.keys()


def test_floor_is_the_longer_of_compute_and_memory() -> None:
    base = Workload(8, 97, 97, dtype="bfloat16")
    measured = rates.Rates(copy_gb_s=4300, matmul_tflop_s=790)
    assert measured.floor_ms(base, "forward") == (pytest.approx(0.918, abs=1e-3), "compute")
    regions = Workload(4, 97, 97, Hk=1, Wk=19, shared=False, dtype="bfloat16")
    assert measured.floor_ms(regions, "forward") == (pytest.approx(0.009, abs=1e-3), "memory")
    # 9409 positions of 512 channels and 19 logits, read once
    gathered = GatherWorkload(4, 97, 97, dtype="bfloat16")
    assert measured.floor_ms(gathered, "forward") == (pytest.approx(0.0093, abs=1e-4), "memory")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_cuda_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    assert run.main(["--device", "cuda", "--out", str(out)]) == 2
    assert capsys.readouterr().err == (
        "benchmarks: --device cuda must have a CUDA device, got none\n"
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--cases", "nothing"], "--cases must be"), (["--forms", "nothing"], "--forms must be")],
)
def test_unknown_names_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    assert run.main([*words, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_rows_and_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = {"fused": Form("fused", off_in_scale), "naive": baselines.FORMS["naive"]}
    planted["flex"] = baselines.FORMS["flex"]
    monkeypatch.setattr(baselines, "FORMS", planted)
    # Without fresh processes, whose start is what takes time here.
    monkeypatch.setattr(run, "run_jobs", lambda jobs: (job.run() for job in jobs))
    out = tmp_path / "rows.jsonl"
    words = ["--quick", "--phases", "step", "backward", "--out", str(out)]
    assert run.main(words) == 1  # a form of ours is wrong
    assert "2 rows of this package's own forms are wrong or failed" in capsys.readouterr().out
    rows = rows_of(out)
    assert [(r["form"], r["phase"], r["status"]) for r in rows] == [
        ("fused", "step", "wrong"),
        ("fused", "backward", "wrong"),
        ("naive", "step", "ok"),
        ("naive", "backward", "ok"),
        ("flex", "step", "refused"),
        ("flex", "backward", "refused"),
    ]
    wrong, right = rows[0], rows[2]
    assert wrong["p50_ms"] is None
    assert "is off by" in wrong["reason"]
    assert right["p20_ms"] <= right["p50_ms"] <= right["p80_ms"]
    assert right["saved_extra_bytes"] == 4 * 576 * 576
    assert right["gate_error"] <= right["gate_bound"]
    for key in ("commit", "device_name", "driver", "torch", "triton", "date", "floor_ms"):
        assert key in right

    assert report.main([str(out)]) == 0
    table = capsys.readouterr().out
    assert "### tiny-24, float32" in table
    assert table.count("| flex | all |") == 1
    assert "1.00 x" in table


def test_rows_and_table_of_a_gather(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_jobs", lambda jobs: (job.run() for job in jobs))
    monkeypatch.setattr(
        run, "select", lambda *_: [Case("small", "a net", GATHER, cpu=("float32",))]
    )
    out = tmp_path / "rows.jsonl"
    words = ["--quick", "--phases", "step", "--forms", "fused", "sdpa", "naive", "--out", str(out)]
    assert run.main(words) == 0
    rows = rows_of(out)
    # There is no such kernel of torch's for it.
    assert [(r["form"], r["status"]) for r in rows] == [("fused", "ok"), ("naive", "ok")]
    assert rows[0]["workload"] == GATHER.to_record()
    assert rows[1]["saved_extra_bytes"] >= 4 * GATHER.weights
    assert report.main([str(out)]) == 0
    assert "N 2, 6 x 7, C 16, 5 regions, channels_last." in capsys.readouterr().out


def test_table_takes_the_last_row_of_each_kind(tmp_path: Path) -> None:
    old: dict[str, Any] = {
        "device_name": "d",
        "case": "c",
        "form": "naive",
        "phase": "step",
        "workload": {"dtype": "float32", "layout": "nchw"},
        "date": "old",
    }
    other = old | {"form": "sdpa"}
    new = old | {"date": "new"}
    assert report.latest([old, other, new]) == [new, other]


@pytest.mark.gpu
def test_rows_on_a_gpu(tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(False)  # cuBLAS asks for an environment variable under it
    out = tmp_path / "rows.jsonl"
    words = ["--device", "cuda", "--cases", "pooled-48-n8", "--quick", "--out", str(out)]
    assert run.main([*words, "--forms", "fused", "naive", "sdpa"]) == 0
    rows = rows_of(out)
    assert [row["status"] for row in rows] == ["ok"] * 9
    assert rows[0]["backend"] in ("triton", "cuda")
    assert all(row["driver"] for row in rows)
