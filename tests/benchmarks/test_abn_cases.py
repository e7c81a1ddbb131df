# SPDX-License-Identifier: MIT
"""Benchmarks of batch norm with its activation: sizes, what is kept, what is overwritten, rows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import abn_baselines, baselines, gate, rates, report, run
from benchmarks.abn_baselines import FORMS
from benchmarks.cases import CASES, Case, select
from ocnet.engine.abn_workload import SLOPE, ABNWorkload, normalised
from ocnet.engine.measure import Measurement, call_of, measure
from ocnet.engine.workload import PHASES, Form

SMALL = ABNWorkload(2, 3, 5, C=8)
ADDED = ABNWorkload(2, 3, 5, C=8, residual=True, layout="nchw")
KINDS = {"plain": SMALL, "residual": ADDED}
SLOW = rates.Rates(copy_gb_s=20, matmul_tflop_s=0.05)  # those of a slow processor
ON_CPU = ("fused:cpu", "fused:reference", "inplace", "naive", "compile", "compile-budget")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*no compiled back end"),
    # Said by torch where it compiles.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
]


def test_costs_are_those_of_the_tensors() -> None:
    call = SMALL.on("cpu", "bfloat16")
    maps, vectors = 2 * 2 * 15 * 8, 4 * 8
    assert call.io_bytes("forward") == 2 * maps + 7 * vectors
    assert call.io_bytes("backward") == 3 * maps + 5 * vectors
    assert call.streamed_bytes("forward") == 3 * maps + 7 * vectors
    assert call.streamed_bytes("step") == 8 * maps + 12 * vectors
    assert call.result_bytes("forward") == maps
    assert call.result_bytes("step") == 2 * maps + 2 * vectors


def test_a_residual_is_read_twice_and_has_a_gradient() -> None:
    maps, vectors = 4 * 2 * 15 * 8, 4 * 8
    assert ADDED.io_bytes("forward") == 3 * maps + 7 * vectors
    assert ADDED.io_bytes("backward") == 5 * maps + 5 * vectors
    assert ADDED.streamed_bytes("forward") == 4 * maps + 7 * vectors
    assert ADDED.streamed_bytes("backward") == 8 * maps + 5 * vectors
    assert ADDED.result_bytes("step") == 3 * maps + 2 * vectors


def test_memory_sets_the_floor_of_every_case() -> None:
    devices = {"cuda": rates.Rates(4300, 790), "cpu": SLOW}
    for device, measured in devices.items():
        calls = [call for case in CASES if case.name.startswith("abn-") for call in case.on(device)]
        # Eight shapes and one with a residual, in two layouts and two dtypes; on the CPU a small batch.
        assert len(calls) == (9 + (device == "cpu")) * 2 * 2
        for call in calls:
            for phase in PHASES:
                assert measured.floor_ms(call, phase)[1] == "memory"
            assert call.io_bytes("step") < call.streamed_bytes("step")


def test_ideal_times_are_those_of_the_study() -> None:
    # Microseconds of a bfloat16 step at 4.8 TB/s, on chip and streamed.
    study = {
        "abn-64-112-n32": (54, 86),
        "abn-256-56-n32": (54, 86),
        "abn-512-28-n32": (27, 43),
        "abn-1024-14-n32-nchw": (13, 21),
        "abn-2048-65x129-n2": (72, 114),
    }
    for name, (on_chip, streamed) in study.items():
        (case,) = select([name], "cuda", quick=False)
        call = case.sizes.on("cuda", "bfloat16")
        assert call.io_bytes("step") / 4.8e6 == pytest.approx(on_chip, abs=1)
        assert call.streamed_bytes("step") / 4.8e6 == pytest.approx(streamed, abs=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_inputs_are_those_of_a_layer_in_training(kind: str, dtype: str) -> None:
    call = KINDS[kind].on("cpu", dtype)
    *arguments, grad = call.inputs()
    given = dict(zip(call.arguments, arguments, strict=True))
    assert ("residual" in given) == call.residual
    dense = torch.channels_last if call.layout == "channels_last" else torch.contiguous_format
    wide = torch.float64 if dtype == "float64" else torch.float32
    for name, tensor in (given | {"grad": grad} | call.options).items():
        is_map = name in ("x", "residual", "grad")
        assert tensor.dtype == (call.torch_dtype if is_map else wide)
        assert tensor.shape == ((2, 8, 3, 5) if is_map else (8,))
        assert not is_map or tensor.is_contiguous(memory_format=dense)
    assert given["weight"].min() > 0
    assert call_of(json.loads(json.dumps(call.to_record()))) == call


@pytest.mark.parametrize("change", [{"H": 0}, {"C": 0}, {"dtype": "int8"}], ids=str)
def test_sizes_that_make_no_call_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"ABNWorkload: .* must"):
        ABNWorkload(**({"N": 1, "H": 2, "W": 2} | change))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["fused:reference", "inplace", "naive"])
def test_right_forms_pass_the_gate(name: str, dtype: str, kind: str) -> None:
    workload = KINDS[kind].on("cpu", dtype)
    verdict = gate.check(FORMS[name], gate.Expected.of(workload))
    assert verdict.ok, verdict


def each_image_by_itself(*tensors: Tensor, **statistics: Tensor) -> Tensor:
    x, weight, bias, *residual = tensors
    parts = [(x[i : i + 1], *(added[i : i + 1] for added in residual)) for i in range(len(x))]
    return torch.cat([normalised(one, weight, bias, *added) for one, *added in parts])


def no_gradient_to_weight(x: Tensor, weight: Tensor, bias: Tensor, *residual: Tensor) -> Tensor:
    return normalised(x, weight.detach() + 0 * weight, bias, *residual)


def frozen_statistics(x: Tensor, weight: Tensor, bias: Tensor, *residual: Tensor) -> Tensor:
    mean, var = x.detach().mean((0, 2, 3)), x.detach().var((0, 2, 3), correction=0)
    return normalised(
        x, weight, bias, *residual, running_mean=mean, running_var=var, training=False
    )


def another_slope(x: Tensor, weight: Tensor, bias: Tensor, *residual: Tensor) -> Tensor:
    out = normalised(x, weight, bias, *residual)
    return torch.where(out < 0, out * (0.0101 / SLOPE), out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("function", "worst"),
    [
        (each_image_by_itself, None),
        (no_gradient_to_weight, "grad_weight"),
        (frozen_statistics, "grad_x"),
        (another_slope, None),
    ],
)
def test_wrong_forms_do_not_pass_the_gate(function: Any, worst: str | None, kind: str) -> None:
    def planted(*tensors: Tensor, **_: Tensor) -> Tensor:
        return function(*tensors)

    verdict = gate.check(Form("planted", planted), gate.Expected.of(KINDS[kind]))
    assert not verdict.ok
    assert worst is None or verdict.worst == worst


def the_other_side(*tensors: Tensor, **_: Tensor) -> Tensor:
    """The right numbers; the derivative is that of the other branch where they are below 0.04."""
    right = normalised(*tensors)
    y = torch.where(right < 0, right / SLOPE, right)
    return right + torch.where(y.abs() < 0.04, (SLOPE - 1) * (y - y.detach()), 0)


@pytest.mark.parametrize(("near", "passes"), [(0.05, True), (0.03, False)])
def test_only_where_rounding_decides_either_branch_is_right(
    near: float, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_NEAR", near)
    workload = KINDS["plain"].on("cpu", "float32")
    expected = gate.Expected.of(workload)
    grad_out = expected.inputs[-1]
    assert 0 < (grad_out == 0).double().mean() < 0.1
    assert gate.check(Form("planted", the_other_side), expected).ok == passes
    assert gate.check(FORMS["fused:reference"], expected).ok


def step_of(name: str, call: ABNWorkload) -> Measurement:
    got = measure(FORMS[name], call, "step", budget_s=0)
    assert (got.status, got.reason) == ("ok", "")
    return got


@pytest.mark.parametrize("name", ["fused", "fused:reference", "inplace"])
def test_the_op_keeps_its_output_and_not_its_input(name: str) -> None:
    maps, vectors = 4 * 2 * 15 * 8, 4 * 8
    kept = step_of(name, SMALL)
    # Weight, bias, and the variance.
    assert kept.saved_bytes == maps + 3 * vectors
    assert kept.saved_extra_bytes == maps + vectors
    assert kept.saved_own_bytes == vectors
    added = step_of(name, ADDED)
    assert (added.saved_bytes, added.saved_own_bytes) == (2 * maps + 3 * vectors, vectors)
    assert Measurement.from_record(json.loads(json.dumps(kept.to_record()))) == kept


def test_the_plain_formula_keeps_both() -> None:
    maps = 4 * 2 * 15 * 8
    kept = step_of("naive", SMALL)
    assert kept.saved_bytes is not None
    assert kept.saved_bytes > 2 * maps
    assert kept.saved_own_bytes is not None
    assert maps < kept.saved_own_bytes < 2 * maps


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", KINDS)
def test_inplace_overwrites_a_copy_that_is_made_before_each_call(kind: str, phase: str) -> None:
    call, overwritten, held = KINDS[kind], [], []
    before = [tensor.clone() for tensor in call.inputs()]

    def watched(x: Tensor, *others: Tensor, **options: Any) -> Tensor:
        assert type(x) is Tensor, "one that was overwritten before"
        place = x.data_ptr()
        out = normalised(x, *others, inplace=True, **options)
        overwritten.append(out.data_ptr() == place)
        held.append(x)
        return out

    form = Form("watched", watched, prepare=FORMS["inplace"].prepare)
    got = measure(form, call, phase, budget_s=0, least=4)
    assert (got.status, got.reason) == ("ok", "")
    # All but the call under hooks, which counts what is saved: one to warm up, one for the peak, one
    # that takes the memory of the timed ones, and these.
    hooked = 0 if phase == "forward" else 1
    assert overwritten == [False] * hooked + [True] * (3 + 4)
    assert all(torch.equal(a, b) for a, b in zip(before, call.inputs(), strict=True))


def in_place_by_torch(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor,
    training: bool = True, momentum: float = 0.1, eps: float = 1e-5,
    activation: str = "leaky_relu", activation_param: float = 0.01,
) -> Tensor:  # fmt: skip
    """What the package's function is told, and returns."""
    assert not (x.is_leaf and x.requires_grad)
    y = F.batch_norm(
        x, running_mean, running_var, weight.abs() + eps, bias, training, momentum, eps
    )
    return F.leaky_relu(y, activation_param) if activation == "leaky_relu" else y


@pytest.mark.parametrize("kind", KINDS)
def test_the_package_is_called_as_it_wants_to_be(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(abn_baselines, "_package", lambda: (in_place_by_torch, ""))
    form, call = FORMS["inplace-abn"], KINDS[kind]
    assert form.refuses(call) == ""
    assert form.refuses(call.on("cuda", "float16")) == ""
    assert "no float16 on cpu" in form.refuses(call.on("cpu", "float16"))
    assert "no bfloat16 on cuda" in form.refuses(call.on("cuda", "bfloat16"))
    verdict = gate.check(form, gate.Expected.of(call))
    assert verdict.ok, verdict


def test_a_package_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(abn_baselines.importlib, "import_module", missing)
    abn_baselines._package.cache_clear()
    refusal = FORMS["inplace-abn"].refuses(SMALL)
    abn_baselines._package.cache_clear()
    assert refusal.startswith("the package inplace_abn cannot be imported: No module named")


def test_forms_are_found_and_refuse_with_a_sentence() -> None:
    assert baselines.forms_of(SMALL) is FORMS
    assert "CUDA tensors" in FORMS["fused:cuda"].refuses(SMALL)
    assert baselines.backend_of("fused:reference", SMALL) == "reference"
    assert baselines.backend_of("inplace", SMALL) == baselines.backend_of("fused", SMALL)
    assert baselines.backend_of("naive", SMALL) is None


@pytest.mark.native
def test_rows_and_table_of_every_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_jobs", lambda jobs: (job.run() for job in jobs))
    # On a busy machine the measured ones may make the operations seem to be the floor.
    monkeypatch.setattr(run, "measure_rates", lambda *_, quick: SLOW)
    call = ABNWorkload(2, 8, 8, C=16)
    monkeypatch.setattr(run, "select", lambda *_: [Case("small", "a net", call, cpu=("float32",))])
    out = tmp_path / "rows.jsonl"
    assert run.main(["--quick", "--phases", "step", "--out", str(out)]) == 0
    rows = {row["form"]: row for row in (json.loads(line) for line in out.read_text().splitlines())}
    ran = {name: row for name, row in rows.items() if row["status"] == "ok"}
    others = {"fused", "fused:cuda", "fused:triton", "inplace-abn"}
    assert {*ON_CPU, *others} - rows.keys() == {f"fused:{rows['fused']['backend']}"}
    assert {*ON_CPU, "fused"} & rows.keys() <= ran.keys() | {"fused:cpu"}
    assert all(row["reason"] for row in rows.values() if row["status"] == "refused")
    assert ran["inplace"]["backend"] == ran["fused"]["backend"]
    maps = 4 * 2 * 64 * 16
    for row in ran.values():
        assert row["workload"] == call.to_record()
        assert (row["io_bytes"], row["streamed_bytes"]) == (
            5 * maps + 12 * 64,
            8 * maps + 12 * 64,
        )
    # Within the budget, which branch the activation took is seen in the input again.
    assert maps <= ran["compile-budget"]["saved_bytes"] < ran["compile"]["saved_bytes"] < 2 * maps
    assert ran["fused"]["saved_own_bytes"] < maps <= ran["compile-budget"]["saved_own_bytes"]

    assert report.main([str(out)]) == 0
    table = capsys.readouterr().out
    assert "N 2, 8 x 8, C 16, leaky ReLU, channels_last." in table
    assert "saved that no other layer keeps" in table
    for row in ran.values():
        on_chip, streamed = (
            row[name] / SLOW.copy_gb_s / 1e6 for name in ("io_bytes", "streamed_bytes")
        )
        told = f"{row['p50_ms'] / on_chip:.1f} (memory), {row['p50_ms'] / streamed:.1f} streamed"
        assert f"| {told} |" in table


def test_short_table_has_some_cases_and_the_compiled_form() -> None:
    row: dict[str, Any] = {
        "device_name": "d",
        "case": "abn-64-112-n32",
        "form": "compile",
        "status": "ok",
        "workload": SMALL.to_record(),
        "p50_ms": 1.0,
        "saved_bytes": 1,
        "peak_bytes": 1,
        "backend": None,
    }
    rows = [row | {"phase": "forward"}, row | {"phase": "step"}]
    other = [each | {"case": "abn-2048-7-n2"} for each in rows]
    budget = [each | {"form": "compile-budget"} for each in rows]
    assert "| abn-64-112-n32 | float32 | compile | 1.0 ms |" in report.summary(rows)
    assert report.summary([*rows, *other, *budget]) == report.summary(rows)
