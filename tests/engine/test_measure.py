# SPDX-License-Identifier: MIT
"""Meters against known costs, and measurements that do not fit, fail or die."""

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ocnet.engine import measure as measuring
from ocnet.engine import meters
from ocnet.engine.gather_workload import FORMS as GATHER_FORMS
from ocnet.engine.gather_workload import GatherWorkload
from ocnet.engine.measure import Job, Measurement, measure, run_jobs
from ocnet.engine.meters import PeakMeter, saved_bytes, time_call
from ocnet.engine.partition_workload import PartitionWorkload, attend
from ocnet.engine.workload import FORMS, Form, Workload
from ocnet.ops import oc_attention
from ocnet.ops.oc_attention.reference import naive_attention

CPU = torch.device("cpu")
SMALL = Workload(N=2, H=5, W=7, E=8, Ev=16)
MIB = 1 << 20


def run_reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return oc_attention(query, key, value, backend="reference")


def leaves(workload: Workload) -> tuple[Tensor, Tensor]:
    query, _, value, _ = workload.inputs()
    return query.requires_grad_(), value.requires_grad_()


def test_plain_formula_keeps_the_matrix() -> None:
    query, value = leaves(SMALL)
    saved = saved_bytes(lambda: naive_attention(query, query, value), (query, value))
    matrix = 4 * 2 * 35 * 35
    assert saved.total == 4 * 2 * 35 * (8 + 16) + matrix
    assert saved.beyond_inputs == matrix


def test_fused_op_keeps_inputs_output_and_one_number_per_query() -> None:
    query, value = leaves(SMALL)
    saved = saved_bytes(lambda: run_reference(query, query, value), (query, value))
    output, sums = 4 * 2 * 35 * 16, 4 * 2 * 35
    assert saved.beyond_inputs == output + sums
    assert saved.total == 4 * 2 * 35 * (8 + 16) + output + sums


def test_views_of_one_storage_count_once() -> None:
    storage = torch.ones(64, requires_grad=True)
    saved = saved_bytes(lambda: storage[:32] * storage[32:])
    assert saved.total == 64 * 4


def test_short_lived_storages_at_one_address_all_count() -> None:
    leaf = torch.ones(1000, requires_grad=True)

    def call() -> None:
        for _ in range(3):
            leaf.exp()  # its result is saved, then dropped

    assert saved_bytes(call, (leaf,)).beyond_inputs == 3 * 4000


@pytest.mark.skipif(
    not meters.peak_is_resettable(), reason="the system does not let a peak be reset"
)
def test_peak_is_that_since_the_restart() -> None:
    def touch(size: int) -> None:
        torch.ones(size, dtype=torch.uint8)

    meter = PeakMeter(CPU)
    touch(256 * MIB)
    meter.restart()
    touch(64 * MIB)
    peak = meter.peak()
    assert peak is not None
    # Memory comes in pages, and the test itself needs some.
    assert 63 * MIB <= peak <= 128 * MIB


def test_percentiles_and_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    durations = iter([0.001 * n for n in range(1, 100)])

    def call(state: object) -> None:
        assert state == "ready"
        clock[0] += next(durations)

    def prepare() -> str:
        clock[0] += 0.5  # must not be timed
        return "ready"

    monkeypatch.setattr(meters.time, "perf_counter", lambda: clock[0])
    timing = time_call(call, CPU, prepare=prepare, budget_s=0, least=11)
    assert timing.repeats == 11
    # The first call of all, of a tenth of the budget, is not one of them.
    assert (timing.p20, timing.p50, timing.p80) == pytest.approx((4, 7, 10))
    assert time_call(call, CPU, prepare=prepare, budget_s=1e9, most=4).repeats == 4


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts page faults of Linux")
def test_calls_find_the_memory_of_the_calls_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of results so large that glibc would ask the system for each."""
    import resource

    size, faults = 256 * MIB, []

    def call(_: object) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(size, dtype=torch.int8).fill_(1)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    with monkeypatch.context() as patch:
        patch.setattr(meters, "_kept_memory", contextlib.nullcontext)
        time_call(call, CPU, budget_s=0, least=4)
    given_back = min(faults)
    assert given_back > 0
    time_call(call, CPU, budget_s=0, least=12)
    assert max(faults[-4:]) < given_back / 10


def test_budget_ends_the_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def call(_: object) -> None:
        clock[0] += 0.4

    monkeypatch.setattr(meters.time, "perf_counter", lambda: clock[0])
    assert time_call(call, CPU, budget_s=1.0, least=1).repeats == 3


@pytest.mark.parametrize(
    ("limit", "left"), [("1000\n", 300), ("max\n", None), (None, None), ("500\n", 0)]
)
def test_container_limit(tmp_path: Path, limit: str | None, left: int | None) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text("700\n")
    assert meters._group_available(tmp_path) == left


def test_costs_are_those_of_the_study() -> None:
    base = Workload(8, 97, 97, dtype="bfloat16")
    assert base.flops("forward") / 1e12 == pytest.approx(0.725, abs=1e-3)
    assert base.flops("backward") / 1e12 == pytest.approx(1.813, abs=1e-3)
    assert base.io_bytes("forward") / 1e6 == pytest.approx(116, abs=1)
    assert base.io_bytes("backward") / 1e6 == pytest.approx(232, abs=1)
    wide = Workload(4, 97, 97, Ev=512, dtype="bfloat16")
    assert wide.flops("backward") / 1e12 == pytest.approx(1.269, abs=1e-3)
    separate = Workload(4, 97, 97, Hk=1, Wk=19, shared=False)
    assert separate.flops("backward") == 2 * 4 * 9409 * 19 * (3 * 256 + 2 * 256)


def test_costs_of_gathering_are_those_of_its_tensors() -> None:
    call = GatherWorkload(4, 97, 97, K=19, dtype="bfloat16")
    features, logits, context = 4 * 9409 * 512, 4 * 9409 * 19, 4 * 512 * 19
    sums = 4 * 4 * 19
    assert call.io_bytes("forward") == 2 * (features + logits + context) + sums
    assert call.io_bytes("backward") == 4 * (features + logits + context) + sums
    assert call.flops("forward") == 2 * 4 * 9409 * 19 * 512
    assert call.flops("step") == 3 * call.flops("forward")
    assert call.result_bytes("step") == 2 * (features + logits + context)


def test_costs_of_groups_are_those_of_their_tensors() -> None:
    call = PartitionWorkload(2, 7, 10, E=8, Ev=12, sizes=(2, 3), dtype="bfloat16")
    queries, values, sums = 2 * 70 * 8, 2 * 70 * 12, 4 * 2 * 70
    assert call.io_bytes("forward") == 2 * (2 * (queries + 2 * values) + sums)
    assert call.io_bytes("backward") == 2 * (4 * (queries + 2 * values) + sums)
    # 7 is cut into 3 + 4 and 2 + 2 + 3, 10 into 5 + 5 and 3 + 3 + 4.
    pairs = 2 * ((9 + 16) * (25 + 25) + (4 + 4 + 9) * (9 + 9 + 16))
    assert call.weights == pairs
    assert call.flops("forward") == 2 * pairs * (8 + 12)
    assert call.flops("backward") == 2 * pairs * min(3 * 8 + 2 * 12, 2 * 8 + 3 * 12)
    assert call.result_bytes("forward") == 2 * 2 * values
    assert call.result_bytes("step") == 2 * 2 * (queries + 2 * values)
    apart = PartitionWorkload(
        1, 8, 6, E=8, Ev=12, partition="blocks", sizes=(4, 3), shared=False, dtype="float32"
    )
    assert apart.io_bytes("forward") == 4 * 48 * (8 + 8 + 12 + 12) + 4 * 48
    assert apart.weights == 4 * 12**2
    assert apart.flops("backward") == 2 * apart.weights * (3 * 8 + 2 * 12)


@pytest.mark.parametrize(
    "call",
    [
        PartitionWorkload(2, 7, 10, E=8, Ev=12, sizes=(1, 2, 3)),
        PartitionWorkload(2, 8, 6, E=8, Ev=12, partition="strided", sizes=(4, 3), shared=False),
    ],
    ids=["pyramid", "strided"],
)
def test_attention_within_groups_is_measured_as_attention_is(call: PartitionWorkload) -> None:
    stages = len(call.partitions)
    *arguments, _ = call.inputs()
    assert len(call.inputs()) == len(call.arguments) + stages
    assert len({id(tensor) for tensor in arguments[:2]}) == (1 if call.shared else 2)
    by_reference = Form("reference", functools.partial(attend, backend="reference"))
    step = measure(by_reference, call, "step", budget_s=0)
    assert (step.status, step.reason) == ("ok", "")
    # Outputs, and a number for each pixel.
    assert step.saved_extra_bytes == stages * 4 * 2 * call.L * (12 + 1)
    assert Measurement.from_record(json.loads(json.dumps(step.to_record()))) == step
    assert measure(by_reference, call.small(), "backward", budget_s=0).status == "ok"


@pytest.mark.parametrize(
    "change",
    [
        {"H": 0},
        {"Ev": 0},
        {"dtype": "int8"},
        {"partition": "cells"},
        {"sizes": ()},
        {"partition": "blocks", "sizes": (4, 3)},
        {"partition": "strided", "sizes": (2,)},
    ],
    ids=str,
)
def test_sizes_that_make_no_groups_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"PartitionWorkload: .* must"):
        PartitionWorkload(**({"N": 1, "H": 6, "W": 8} | change))


def test_a_gather_is_measured_as_attention_is() -> None:
    call = GatherWorkload(2, 5, 7, C=8, K=3)
    fused, naive = (measure(GATHER_FORMS[name], call, "step", budget_s=0) for name in GATHER_FORMS)
    context, sums = 4 * 2 * 8 * 3, 4 * 2 * 3
    assert fused.status == naive.status == "ok"
    assert fused.saved_extra_bytes == context + sums
    assert naive.saved_extra_bytes == 4 * call.weights
    assert Measurement.from_record(json.loads(json.dumps(fused.to_record()))) == fused


@pytest.mark.parametrize("change", [{"H": 0}, {"K": 0}, {"C": 0}, {"dtype": "int8"}], ids=str)
def test_sizes_that_make_no_gather_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="GatherWorkload: "):
        GatherWorkload(**({"N": 1, "H": 2, "W": 2} | change))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_inputs_have_the_layout_asked_for(layout: str) -> None:
    workload = Workload(2, 3, 4, E=8, Ev=16, dtype="bfloat16", layout=layout)
    query, key, value, grad_out = workload.inputs()
    assert key is query
    dense = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    for tensor, channels in ((query, 8), (value, 16), (grad_out, 16)):
        assert tensor.shape == (2, channels, 3, 4)
        assert tensor.dtype == torch.bfloat16
        assert tensor.is_contiguous(memory_format=dense)


@pytest.mark.parametrize(
    "change",
    [{"H": 0}, {"Hk": 3, "shared": False}, {"Hk": 3, "Wk": 3}, {"dtype": "int8"}],
)
def test_workload_refuses_what_is_no_call(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"Workload: .* must"):
        Workload(**{"N": 1, "H": 2, "W": 2, **change})


@pytest.mark.parametrize("shared", [True, False])
def test_sdpa_form_computes_the_same(shared: bool) -> None:
    keys = {} if shared else {"Hk": 2, "Wk": 9}
    workload = Workload(2, 5, 7, E=8, Ev=8, dtype="float64", shared=shared, **keys)
    query, key, value, _ = workload.inputs()
    got = FORMS["sdpa"].compute(query, key, value)
    torch.testing.assert_close(got, naive_attention(query, key, value))


def test_measurement_has_all_its_parts_and_survives_json() -> None:
    step = measure(FORMS["naive"], SMALL, "step", budget_s=0, least=2)
    assert (step.status, step.reason) == ("ok", "")
    assert step.time is not None
    assert step.time.repeats == 2
    assert step.saved_extra_bytes == 4 * 2 * 35 * 35
    assert Measurement.from_record(json.loads(json.dumps(step.to_record()))) == step
    forward = measure(FORMS["naive"], SMALL, "forward", budget_s=0)
    assert forward.saved_bytes is None
    backward = measure(FORMS["naive"], SMALL, "backward", budget_s=0)
    assert backward.saved_bytes == step.saved_bytes
    assert backward.peak_bytes is None


def test_unknown_phase_is_refused() -> None:
    with pytest.raises(ValueError, match=r"phase must be 'forward', .* got 'both'"):
        measure(FORMS["naive"], SMALL, "both")


def refused(_: Workload) -> str:
    return "it does not like this"


def raising(error: Exception) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        raise error

    return attention


def greedy(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.empty(1 << 55)


@pytest.mark.parametrize(
    ("form", "status", "reason"),
    [
        (Form("f", naive_attention, refused), "refused", "it does not like this"),
        (Form("f", raising(RuntimeError("first\nsecond"))), "failed", "RuntimeError: first"),
        (Form("f", raising(torch.OutOfMemoryError("x"))), "out of memory", "needs about 0.00 GiB"),
        (Form("f", greedy), "out of memory", "needs about 0.00 GiB"),
    ],
)
def test_trouble_is_a_status(form: Form, status: str, reason: str) -> None:
    got = measure(form, SMALL, "step")
    assert (got.status, got.reason, got.time) == (status, reason, None)


def test_what_cannot_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    large = Workload(1, 64, 64, E=8, Ev=8)
    matrices = 3 * 4 * 4096 * 4096
    monkeypatch.setattr(measuring, "available_bytes", lambda device: matrices)
    got = measure(Form("f", raising(AssertionError()), builds_matrix=lambda w: True), large, "step")
    assert (got.status, got.reason) == ("too large", "needs about 0.19 GiB, 0.19 GiB are free")
    assert got.predicted_bytes == matrices + 4 * 4096 * 8 * 3


PROVIDER = """
import os, signal
from ocnet.engine.workload import Form
from ocnet.ops.oc_attention.reference import naive_attention

def at_size(action):
    def attention(query, key, value):
        if query.shape[2] == 5:  # not in the warm-up
            action()
        return naive_attention(query, key, value)
    return attention

def form(name, action):
    return Form(name, at_size(action), provider="planted_forms")

FORMS = {
    "killed": form("killed", lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "ended": form("ended", lambda: os._exit(3)),
}
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_process_that_dies_costs_one_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted_forms.py").write_text(PROVIDER)
    monkeypatch.syspath_prepend(tmp_path)
    paths = [str(tmp_path), *(path for path in sys.path if path)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    import planted_forms

    killed, ended = planted_forms.FORMS["killed"], planted_forms.FORMS["ended"]
    other = Workload(1, 3, 3, E=8, Ev=8)
    jobs = [
        Job(killed, SMALL, "forward", 0, 1),
        Job(ended, other, "forward", 0, 1),
        Job(ended, SMALL, "forward", 0, 1),
    ]
    results = list(run_jobs(jobs))
    assert [r.status for r in results] == ["out of memory", "ok", "failed"]
    assert [r.workload for r in results] == [SMALL, other, SMALL]
    assert results[2].reason == "the process ended with 3: no message"
    assert results[1].time is not None
    assert results[1].peak_bytes is not None


@pytest.mark.gpu
def test_measurement_on_a_gpu() -> None:
    torch.use_deterministic_algorithms(False)  # cuBLAS asks for an environment variable under it
    workload = Workload(2, 40, 40, E=64, Ev=64, dtype="bfloat16", device="cuda")
    matrix = 2 * 1600 * 1600 * 2
    got = measure(FORMS["naive"], workload, "step", budget_s=0.01)
    assert (got.status, got.saved_extra_bytes) == ("ok", matrix)
    assert got.time is not None
    assert 0 < got.time.p20 <= got.time.p80
    assert got.peak_bytes is not None
    assert 2 * matrix <= got.peak_bytes <= 5 * matrix
