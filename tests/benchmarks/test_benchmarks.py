# SPDX-License-Identifier: MIT
"""The benchmark program: cases, gate, rows and tables; no times are judged."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import baselines, gate, partition_baselines, rates, report, run
from benchmarks.backends import is_ours
from benchmarks.cases import CASES, QUICK, Case, select
from ocnet.engine.abn_workload import ABNWorkload
from ocnet.engine.gather_workload import GatherWorkload
from ocnet.engine.measure import call_of
from ocnet.engine.partition_workload import PartitionWorkload, attend
from ocnet.engine.workload import Call, Form, Workload
from ocnet.ops import Grid, Strided, _hopper
from ocnet.ops._backends import SUPPORTED
from ocnet.ops.oc_attention import cuda_backend
from ocnet.ops.oc_attention.autograd import BACKENDS
from ocnet.ops.oc_attention.problem import MAX_CHANNELS
from ocnet.ops.oc_attention.reference import naive_attention
from ocnet.ops.spatial_gather.problem import MAX_CHANNELS as MAX_GATHERED
from ocnet.ops.spatial_gather.problem import MAX_REGIONS
from ocnet.ops.spatial_gather.reference import naive_gather

SMALL = Workload(2, 6, 7, E=16, Ev=24)
GATHER = GatherWorkload(2, 6, 7, C=16, K=5)
PYRAMID = PartitionWorkload(2, 7, 11, E=16, Ev=24, sizes=(1, 3))
STEP_OF_ISA = {
    kind: PartitionWorkload(
        2, 6, 8, E=16, Ev=24, partition=kind, sizes=(2, 4), shared=False, layout=layout
    )
    for kind, layout in (("blocks", "nchw"), ("strided", "channels_last"))
}
IN_GROUPS = {"grid": PYRAMID, **STEP_OF_ISA}
pytestmark = pytest.mark.filterwarnings("ignore:.*no compiled back end")


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
                elif not isinstance(workload, ABNWorkload):  # which takes any number of channels
                    assert max(workload.widths) <= MAX_CHANNELS
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
        "whole-129x257": 1.126,
        "asp-48-n8": 0.033,
        "asp-97-n4": 0.272,
        "ocr-97-k19-n4": 0.001,
        "ocr-97-k150-n4": 0.006,
        "ocr-128x256-k19": 0.001,
    }
    for name, tflop in table.items():
        (case,) = select([name], "cuda", quick=False)
        assert case.sizes.flops("forward") / 1e12 == pytest.approx(tflop, abs=6e-4)


def test_groups_cost_what_their_sizes_say() -> None:
    # Two operations for each pair of pixels of one group and each of 256 + 512 channels.
    edges_97 = {1: [97], 2: [48, 49], 3: [32, 32, 33], 6: [16] * 5 + [17]}
    pyramid = sum(sum(edge**2 for edge in edges) ** 2 for edges in edges_97.values())
    pairs = {
        "pyramid-97-n1": pyramid,
        "pyramid-97-n4": 4 * pyramid,
        "isa-long-104-n4": 4 * 64 * 169**2,
        "isa-short-104-n4": 4 * 169 * 64**2,
        "isa-long-136x264": 64 * 561**2,
        "isa-short-136x264": 561 * 64**2,
    }
    for name, count in pairs.items():
        (case,) = select([name], "cuda", quick=False)
        assert case.sizes.weights == count
        assert case.sizes.flops("forward") == 2 * 768 * count


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


@pytest.mark.parametrize("name", ["fused:reference", "published", "sdpa"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("kind", IN_GROUPS)
def test_right_groups_pass_the_gate(kind: str, name: str, dtype: str) -> None:
    workload = IN_GROUPS[kind].on("cpu", dtype)
    verdict = gate.check(baselines.forms_of(workload)[name], gate.Expected.of(workload))
    assert verdict.ok, verdict


@pytest.mark.parametrize("kind", IN_GROUPS)
def test_ways_without_the_op_keep_keys_apart_and_together(kind: str) -> None:
    workload = dataclasses.replace(IN_GROUPS[kind], shared=not IN_GROUPS[kind].shared)
    expected = gate.Expected.of(workload)
    for name in ("published", "sdpa"):
        verdict = gate.check(baselines.forms_of(workload)[name], expected)
        assert verdict.ok, (name, verdict)


def test_the_mask_of_flex_has_the_pairs_of_one_group() -> None:
    # The kernel runs on a GPU only; what it is told can be read anywhere.
    partition = Strided(2, 3)
    mask = partition_baselines._block_mask(partition.axes(6, 7), torch.device("cpu"))
    index = torch.arange(42)
    told = mask.mask_mod(torch.tensor(0), torch.tensor(0), index[:, None], index[None, :])
    group = (index // 7) % 2 * 3 + (index % 7) % 3
    assert torch.equal(told, group[:, None] == group[None, :])


def one_scale_as_another(*tensors: Tensor, partitions: Any) -> Any:
    return attend(*tensors, partitions=(partitions[0], Grid(2)))


def no_gradient_to_one_value(*tensors: Tensor, partitions: Any) -> Any:
    tensors = (*tensors[:5], tensors[5].detach() + 0 * tensors[5])
    return attend(*tensors, partitions=partitions)


@pytest.mark.parametrize(
    ("attention", "worst"),
    [(one_scale_as_another, None), (no_gradient_to_one_value, "grad_value_1")],
)
def test_wrong_groups_do_not_pass_the_gate(attention: Any, worst: str | None) -> None:
    verdict = gate.check(Form("planted", attention), gate.Expected.of(PYRAMID))
    assert not verdict.ok
    assert worst is None or verdict.worst == worst


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


def test_a_form_of_8_bits_is_measured_by_its_own_formula() -> None:
    """Whose errors are larger, and which has no gradients."""
    form = baselines.FORMS["fused:fp8"]
    workload = dataclasses.replace(SMALL, dtype="bfloat16")
    expected = gate.Expected.of(workload)
    right = dataclasses.replace(form, compute=form.formula)
    verdict = gate.check(right, expected)
    assert verdict.ok
    assert verdict.worst == "out"
    assert verdict.bound > expected.bounds["out"]
    wrong = dataclasses.replace(form, compute=lambda *maps: 1.2 * right.compute(*maps))
    assert not gate.check(wrong, expected).ok
    assert baselines.backend_of(form.name, SMALL) is None
    assert "CUDA tensors" in form.refuses(workload)


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
    groups = baselines.forms_of(PYRAMID)
    assert "CUDA tensors" in groups["fused:cuda"].refuses(PYRAMID)
    assert "CPU" in groups["flex"].refuses(PYRAMID)
    assert groups["fused"].refuses(PYRAMID) == ""
    assert baselines.backend_of("fused:reference", PYRAMID) == "reference"
    assert baselines.backend_of("published", PYRAMID) is None
    for call in (SMALL, PYRAMID):
        for name in ("fused:hopper", "fused:portable"):
            assert "CUDA tensors" in baselines.forms_of(call)[name].refuses(call)
    for kernel in ("flash", "cudnn", "efficient", "math"):
        assert "CPU" in forms[f"sdpa:{kernel}"].refuses(SMALL)


def test_forms_of_kernels_make_the_back_end_take_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """And leave it as it was; which it takes by itself depends on the number of keys."""
    seen: list[int] = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            seen.append(_hopper.FEW_KEYS)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            seen.append(_hopper.FEW_KEYS)
            return grad

    def attention(*tensors: Tensor, backend: str) -> Any:
        assert backend == "cuda"
        return Watched.apply(tensors[0]).view(-1)

    monkeypatch.setattr(cuda_backend._BACKEND, "supports", lambda problem: SUPPORTED)
    monkeypatch.setattr(cuda_backend._HOPPER, "_refuse_device", lambda device: None)
    op = dataclasses.replace(baselines.OP, compute=attention)
    forms = {form.name: form for form in op.forms("here")}
    wide = Workload(1, 20, 20, dtype="bfloat16")
    few = Workload(1, 20, 20, Hk=1, Wk=19, shared=False, dtype="bfloat16")
    for workload in (wide, few):
        for name in ("fused:hopper", "fused:portable"):
            assert forms[name].refuses(workload) == ""
            assert op.taken(name, workload) == "cuda"
            assert op.kernels(name, workload) == f"cuda, {name[6:]}"
    assert op.kernels("fused:cuda", wide) == "cuda, hopper"
    assert op.kernels("fused:cuda", few) == "cuda, portable"
    assert "no products" in forms["fused:hopper"].refuses(Workload(1, 20, 20, dtype="float64"))
    for name in ("fused:hopper", "fused:portable"):
        forms[name].compute(torch.ones(1, requires_grad=True)).backward()
    assert seen == [0, 0, 2**31, 2**31]
    assert _hopper.FEW_KEYS == 192
    names = [form.name for form in run._distinct([*forms.values()], few)]
    assert "fused:cuda" not in names
    assert {"fused:hopper", "fused:portable"} <= {*names}


def test_every_form_can_be_asked_for_by_name() -> None:
    calls: tuple[Call, ...] = (SMALL, GATHER, PYRAMID, ABNWorkload(2, 6, 7))
    assert set(baselines.NAMES) == {name for call in calls for name in baselines.forms_of(call)}
    assert [name for name in baselines.NAMES if is_ours(name)] == [
        "fused",
        "fused:hopper",
        "fused:portable",
        *(f"fused:{name}" for name in BACKENDS.names),
        "fused:fp8",
        "inplace",
    ]


def test_floor_is_the_longer_of_compute_and_memory() -> None:
    base = Workload(8, 97, 97, dtype="bfloat16")
    measured = rates.Rates(copy_gb_s=4300, matmul_tflop_s=790)
    assert measured.floor_ms(base, "forward") == (pytest.approx(0.918, abs=1e-3), "compute")
    regions = Workload(4, 97, 97, Hk=1, Wk=19, shared=False, dtype="bfloat16")
    assert measured.floor_ms(regions, "forward") == (pytest.approx(0.009, abs=1e-3), "memory")
    # 9409 positions of 512 channels and 19 logits, read once
    gathered = GatherWorkload(4, 97, 97, dtype="bfloat16")
    assert measured.floor_ms(gathered, "forward") == (pytest.approx(0.0093, abs=1e-4), "memory")


def test_slow_products_of_narrow_numbers_are_no_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that has none multiplies their float32 values."""
    times = {torch.bfloat16: 8.0, torch.float32: 2.0, torch.float64: 4.0}
    monkeypatch.setattr(rates, "_matmul_ms", lambda side, kind, *_: times[kind] * side**3)
    found = {name: rates.measure_rates("cpu", name, quick=True) for name in ("bfloat16", "float64")}
    assert found["bfloat16"].matmul_tflop_s == 2 * found["float64"].matmul_tflop_s


def row_flops(row: dict[str, Any]) -> int:
    return call_of(row["workload"]).flops(row["phase"])


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
    [
        (["--cases", "nothing"], "--cases must be"),
        (["--forms", "nothing"], "--forms must be"),
        (["--cases", "tiny-24", "--dtypes", "float16"], "--dtypes must be of float32, got float16"),
    ],
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
    planted["fused:fp8"] = baselines.FORMS["fused:fp8"]  # has neither phase
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
    assert right["tflop_s"] * right["p50_ms"] == pytest.approx(row_flops(right) / 1e9)
    assert right["share_of_floor"] == right["floor_ms"] / right["p50_ms"]
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


def test_rows_and_table_of_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_jobs", lambda jobs: (job.run() for job in jobs))
    cases = [Case(kind, "a net", call, cpu=("float32",)) for kind, call in IN_GROUPS.items()]
    monkeypatch.setattr(run, "select", lambda *_: cases)
    out = tmp_path / "rows.jsonl"
    words = ["--quick", "--phases", "step", "--out", str(out)]
    forms = ["fused:reference", "published", "sdpa", "naive", "flex"]
    assert run.main([*words, "--forms", *forms]) == 0
    rows = rows_of(out)
    taken = ["fused:reference", "published", "sdpa", "flex"]
    assert [(r["case"], r["form"]) for r in rows] == [(k, f) for k in IN_GROUPS for f in taken]
    assert [r["status"] for r in rows] == ["ok", "ok", "ok", "refused"] * 3
    for row, call in zip(rows[1::4], IN_GROUPS.values(), strict=True):
        assert row["saved_extra_bytes"] >= 4 * call.weights
        assert call_of(row["workload"]) == call.on("cpu", "float32")
    assert rows[0]["backend"] == "reference"
    assert report.main([str(out)]) == 0
    table = capsys.readouterr().out
    sizes = "grid 1, 3, E 16, Ev 24, shared query and key, channels_last."
    assert f"N 2, 7 x 11, {sizes}" in table
    assert "N 2, 6 x 8, blocks 2, 4, E 16, Ev 24, separate query and key, nchw." in table
    assert "| vs published |" in table
    assert table.count("| published | step |") == 3
    assert table.count("1.00 x") >= 3


def test_short_table_has_registered_cases_only() -> None:
    row: dict[str, Any] = {
        "device_name": "d",
        "case": "tiny-24",
        "form": "fused",
        "status": "ok",
        "workload": {"dtype": "float32", "layout": "nchw"},
        "p50_ms": 1.0,
        "saved_bytes": 1,
        "peak_bytes": 1,
        "backend": "cpu",
    }
    rows = [row | {"phase": "forward"}, row | {"phase": "step"}]
    old = [each | {"case": "of the past"} for each in rows]
    published = [each | {"form": "published", "backend": None} for each in rows]
    assert report.summary([*old, *rows]) == report.summary(rows)
    assert report.summary([*rows, *published]).count("| tiny-24 |") == 2
    large = {"status": "too large", "predicted_bytes": 3 << 30, "p50_ms": None}
    table = report.summary([rows[0], rows[1] | large])
    assert table.endswith("| 1.0 ms | too large | - | (needs 3.0 GiB) |")


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
