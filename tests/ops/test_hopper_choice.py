# SPDX-License-Identifier: MIT
"""When attention takes the kernels on Hopper's own instructions, what is said of it, and how."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ocnet.ops import Grid, _extension, _hopper, explain, oc_attention
from ocnet.ops._backends import SUPPORTED, Support
from ocnet.ops._hopper import HopperKernels, have_aligned_channels, operands
from ocnet.ops.oc_attention import autograd as attention
from ocnet.ops.oc_attention import cpu_backend as attention_cpu
from ocnet.ops.oc_attention import cuda_backend as attention_cuda
from ocnet.ops.oc_attention import triton_backend as attention_triton
from ocnet.ops.oc_attention.problem import Problem
from ocnet.ops.partitioned_attention import autograd as partition
from ocnet.ops.partitioned_attention import cpu_backend as partition_cpu
from ocnet.ops.partitioned_attention import cuda_backend as partition_cuda
from ocnet.ops.partitioned_attention import triton_backend as partition_triton

KERNELS = (attention_cuda._HOPPER, partition_cuda._HOPPER)
ON_HOPPER = "forward on Hopper's own instructions"


def problem(dtype=torch.bfloat16, e: int = 256, ev: int = 256, device: str = "cuda") -> Problem:
    return Problem(torch.device(device), dtype, 1, 400, 400, e, ev, shared=True)


@pytest.fixture
def on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call is as on an H100, for which there is Triton too."""
    elsewhere = Support(False, "it takes CPU tensors")
    for backend in (attention_cpu, partition_cpu):
        monkeypatch.setattr(backend, "supports", lambda problem: elsewhere)
    for kernels in KERNELS:
        monkeypatch.setattr(kernels, "_refuse_device", lambda device: None)
    for backend in (attention_cuda, partition_cuda):
        monkeypatch.setattr(backend._BACKEND, "supports", lambda problem: SUPPORTED)
    for backend in (attention_triton, partition_triton):
        monkeypatch.setattr(backend, "supports", lambda problem: SUPPORTED)


@pytest.mark.parametrize(
    ("changed", "keys", "reason"),
    [
        ({"dtype": torch.float32}, 400, "they have no products of torch.float32"),
        ({"dtype": torch.float64}, 400, "they have no products of torch.float64"),
        ({"e": 257}, 400, "up to 256 channels of queries and 512 of values, not E=257, Ev=256"),
        ({"ev": 513}, 400, "up to 256 channels of queries and 512 of values, not E=256, Ev=513"),
        ({}, 192, "others keep 192 keys or fewer on chip"),
        ({"device": "cpu"}, 400, "they run on GPUs"),
    ],
)
def test_reasons(changed: dict[str, Any], keys: int, reason: str) -> None:
    kernels = HopperKernels("oc_attention", _hopper.NARROW)
    for backward in (False, True):
        found = kernels.refuse(problem(**changed), keys, backward=backward)
        assert found is not None
        assert reason in found


def test_float32_is_exact_and_only_forward(on_hopper: None) -> None:
    kernels = attention_cuda._HOPPER
    exact = problem(torch.float32)
    assert kernels.refuse(exact, 400) is None
    assert kernels.refuse(exact, 96) == "others keep 96 keys or fewer on chip"
    rounded = dataclasses.replace(exact, tf32=True)
    assert kernels.refuse(rounded, 400) == (
        "their products of float32 are exact, and TF32 is allowed"
    )
    assert kernels.refuse(exact, 400, backward=True) == "they have no products of torch.float32"


@pytest.mark.parametrize(
    ("capability", "built", "reason"),
    [
        ((9, 0), True, None),
        ((9, 0), False, "the library was built without code for sm_90a"),
        ((8, 0), True, "a fake one has others"),
        ((10, 0), True, "a fake one has others"),
        ((12, 0), True, "a fake one has others"),
    ],
)
def test_reasons_of_devices(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built: bool, reason: str | None
) -> None:
    monkeypatch.setattr(_extension, "load", lambda half: _extension.Library(None, None))
    monkeypatch.setattr(_hopper, "_is_built", lambda half, op: built)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a fake one")
    kernels = HopperKernels("oc_attention", _hopper.NARROW)
    assert kernels.refuse(problem(), 193) == reason
    told = kernels.describe(problem(), 193)
    if reason is None:
        assert told.startswith(ON_HOPPER)
    else:
        assert told == f"forward without Hopper's own instructions: {reason}"


@pytest.mark.native
@pytest.mark.parametrize("op", ["oc_attention", "partitioned_attention"])
def test_what_is_built(emulator, op: str) -> None:
    assert _hopper._is_built("emulated", op)
    assert not _hopper._is_built("emulated", f"no_{op}")
    for name in (f"{op}_hopper_fwd", f"{op}_hopper_bwd"):
        found = getattr(torch.ops.ocnet_emulated, name).default
        assert _hopper._overload("emulated", name) == found


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize("forward", [True, False])
def test_auto_asks_them_first_once_they_are_confirmed(
    on_hopper: None, monkeypatch: pytest.MonkeyPatch, forward: bool, backward: bool
) -> None:
    """Each pass on its own."""
    monkeypatch.setattr(_hopper, "CONFIRMED", forward)
    monkeypatch.setattr(_hopper, "CONFIRMED_BACKWARD", backward)
    maps = torch.zeros(1, 8, 20, 20, dtype=torch.bfloat16)
    stages = {
        attention: Problem.of(maps, None, maps),
        partition: partition.Problem.of([maps], [], [maps], [Grid(1)]),
    }
    for module, of_op in stages.items():
        asked = [name for name, _ in module.BACKENDS._ordered]
        others = dict(module.BACKENDS._ordered)
        assert asked.index("triton") < asked.index("cuda")
        for is_backward, confirmed in ((False, forward), (True, backward)):
            taken = module.BACKENDS.choose(of_op, "auto", backward=is_backward)
            assert taken is others["cuda" if confirmed else "triton"]
            explicit = module.BACKENDS.choose(of_op, "triton", backward=is_backward)
            assert explicit is others["triton"]


@pytest.mark.parametrize(
    "changed", [{"dtype": torch.float64}, {"size": 13}], ids=["dtype", "few keys"]
)
def test_auto_asks_others_first_where_they_refuse(
    on_hopper: None, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    monkeypatch.setattr(_hopper, "CONFIRMED", True)
    side = changed.get("size", 20)
    maps = torch.zeros(1, 8, side, side, dtype=changed.get("dtype", torch.bfloat16))
    told = explain(oc_attention, maps, maps, maps)
    assert told.chosen == "triton"
    assert told.reasons["cuda"].startswith(
        "could take it; 'triton' comes first; forward without Hopper's own instructions: "
    )


def test_a_back_end_that_refuses_is_not_asked_first(
    on_hopper: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hopper, "CONFIRMED", True)
    unbuilt = Support(False, "it is not built", missing_build=True)
    monkeypatch.setattr(attention_cuda._BACKEND, "supports", lambda problem: unbuilt)
    maps = torch.zeros(1, 8, 20, 20, dtype=torch.bfloat16)
    told = explain(oc_attention, maps, maps, maps)
    assert (told.chosen, told.reasons["cuda"]) == ("triton", "it is not built")


def test_groups_count_the_keys_of_the_largest(
    on_hopper: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 x 20 pixels in groups of 400 or of 100, of which the latter fit on chip."""
    monkeypatch.setattr(_hopper, "CONFIRMED", True)
    maps = torch.zeros(1, 8, 20, 20, dtype=torch.bfloat16)
    for scales, chosen in (((1,), "cuda"), ((2,), "triton"), ((2, 1), "cuda")):
        stages = [maps] * len(scales)
        grids = [Grid(scale) for scale in scales]
        told = partition.BACKENDS.explain(partition.Problem.of(stages, [], stages, grids))
        assert told.chosen == chosen, scales


def test_explain_tells_of_them(on_hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.zeros(1, 8, 20, 20, dtype=torch.bfloat16)
    monkeypatch.setattr(_hopper, "CONFIRMED", False)
    told = explain(oc_attention, maps, maps, maps, backend="cuda")
    assert told.reasons["cuda"] == f"taken; {ON_HOPPER}, not yet confirmed on a device"
    monkeypatch.setattr(_hopper, "CONFIRMED", True)
    told = explain(oc_attention, maps, maps, maps)
    assert told.chosen == "cuda"
    assert told.reasons["cuda"] == f"taken; {ON_HOPPER}"
    assert told.reasons["triton"] == "could take it; 'cuda' comes first"
    assert next(iter(told.reasons)) == "cuda"


# --- operands ---


def rows(tokens: int, channels: int, images: int = 2) -> Tensor:
    """Draw a token matrix whose channels lie side by side."""
    return torch.randn(images, tokens, channels).to(torch.bfloat16)


def planes(tokens: int, channels: int, images: int = 2) -> Tensor:
    """Draw a token matrix whose tokens lie side by side: NCHW."""
    return rows(channels, tokens, images).mT


@pytest.mark.parametrize(
    ("matrix", "aligned"),
    [
        (planes(16, 5), True),
        (planes(16, 5, 1), True),
        (planes(24, 2)[:, :17], True),  # ragged, of rows that are not
        (planes(17, 5), False),
        (rows(16, 8), False),
        (planes(16, 1), False),  # one channel is a row, and one token a plane
        (planes(1, 16), False),
        (planes(24, 4)[:, 1:17], False),
        (planes(24, 4)[:, 8:16], True),
        (planes(16, 4)[:, :, ::2], True),
        (planes(20, 4)[:, :16, ::2], True),  # every other channel of 20 tokens: 40
        (planes(12, 2, 3)[:, :8, ::2], False),
        (planes(12, 4, 3)[::2, :8, ::2], True),
        (planes(8, 3).repeat(1, 2, 1)[:, ::2], False),
    ],
)
def test_planes_that_the_engine_can_read(matrix: Tensor, aligned: bool) -> None:
    assert have_aligned_channels(matrix) == aligned
    assert have_aligned_channels(None, planes(16, 8), matrix) == aligned


def test_operands_stay_where_they_lie_alike() -> None:
    for make in (rows, planes):
        given = (make(16, 8), make(24, 8), make(24, 16))
        assert all(a is b for a, b in zip(operands(*given), given, strict=True))
        query, key, value = operands(given[0], None, given[2])
        assert (query is given[0], key, value is given[2]) == (True, None, True)


@pytest.mark.parametrize("odd", range(3))
def test_operands_that_differ_become_rows(odd: int) -> None:
    given = [planes(16, 8), planes(24, 8), planes(24, 16)]
    given[odd] = rows(24 if odd else 16, 16 if odd == 2 else 8)
    made = operands(*given)
    assert all(torch.equal(a, b) for a, b in zip(made, given, strict=True))
    assert all(t.stride(2) == 1 and t.data_ptr() % 16 == 0 for t in made)
    assert made[odd] is given[odd]  # what lies so already is not copied


def test_ragged_planes_become_padded_rows() -> None:
    given = (planes(15, 9), None, planes(15, 3))
    query, _, value = operands(*given)
    assert torch.equal(query, given[0])
    assert query.stride() == (15 * 16, 16, 1)
    assert value.stride() == (15 * 8, 8, 1)


def test_the_back_end_hands_over_what_the_op_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCHW maps of whole vectors as they are, and rows of all others; results where they were."""
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(attention_cuda._HOPPER, "_refuse_device", lambda device: None)
    monkeypatch.setattr(attention_cuda._HOPPER, "forward", seen.append)
    for tokens in (200, 201):
        query, value = planes(tokens, 8), planes(tokens, 16)
        results = SimpleNamespace(out=planes(tokens, 16), lse=torch.zeros(2, tokens))
        call = attention.ForwardCall(query, None, value, 0.5, False, results.out, results.lse, None)
        attention_cuda.forward(call)
        given = seen.pop()
        assert given[1:2] + given[3:] == (None, 0.5, results.out, results.lse, None)
        assert (given[0] is query) == (given[2] is value) == (tokens == 200)
