# SPDX-License-Identifier: MIT
"""What is special to the CUDA kernels of spatial gathering, at the level of the native ops.

What every back end must do is in test_spatial_gather.py, which they go through as well.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.native

NAN = float("nan")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SM_86_SHARED = 99 * 1024


class Call(NamedTuple):
    """Token matrices of one call, (N, tokens, channels)."""

    features: Tensor
    logits: Tensor
    grad_out: Tensor


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def run(subject: str, backend: str, device: str) -> Callable[..., dict[str, Tensor]]:
    """Run a call forward and backward; returns the results that there are, by name."""
    ops = getattr(torch.ops, f"ocnet_{subject}")

    def run(
        call: Call, layout: str = "channels_last", wanted: str = "fl", tf32: bool = False
    ) -> dict[str, Tensor]:
        dtype, narrow = call.features.dtype, call.features.element_size() == 2
        # The tensor-core kernels copy rows of features and of their gradient.
        rows = "channels_last" if narrow or tf32 else layout
        features, grad_out = (place(t, rows, device) for t in (call.features, call.grad_out))
        logits = place(call.logits, layout, device)

        def empty(like: Tensor, needed: bool = True) -> Tensor | None:
            return place(torch.full_like(like, NAN), layout, device) if needed else None

        out, residual = empty(grad_out), empty(grad_out, narrow)
        lse = torch.full(out.shape[:2], NAN, dtype=sums_of(dtype), device=device)
        ops.spatial_gather_fwd(features, logits, 0.7, tf32, out, lse, residual)
        grads = empty(features, "f" in wanted), empty(logits, "l" in wanted)
        ops.spatial_gather_bwd(grad_out, features, logits, out, lse, residual, 0.7, tf32, *grads)
        names = ("out", "lse", "residual", "grad_features", "grad_logits")
        results = zip(names, (out, lse, residual, *grads), strict=True)
        return {name: tensor for name, tensor in results if tensor is not None}

    return run


def make_call(n: int, l: int, c: int, k: int, dtype: torch.dtype = torch.float32) -> Call:
    def draw(tokens: int, channels: int) -> Tensor:
        return torch.randn(n, tokens, channels, dtype=torch.float64).to(dtype)

    return Call(draw(l, c), draw(l, k), draw(k, c))


def place(values: Tensor, layout: str, device: str) -> Tensor:
    """Copy (N, tokens, channels) values to the strides of a layout; gaps are NaN."""
    values = values.to(device)
    if layout == "nchw":
        return values.mT.contiguous().mT
    if layout == "channels_last":
        # Rows at multiples of 16 bytes.
        n, tokens, channels = values.shape
        room = torch.full(
            (n, tokens, -(-channels // 8) * 8), NAN, dtype=values.dtype, device=device
        )
        return room[..., :channels].copy_(values)
    n, tokens, channels = values.shape
    shape = (n + 1, 3 * tokens + 1, 2 * channels + 3)
    room = torch.full(shape, NAN, dtype=values.dtype, device=device)
    return room[:n, 1::3, 2 : 2 * channels + 2 : 2].copy_(values)


def sums_of(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def formula(call: Call) -> dict[str, Tensor]:
    """Return what the plain formula gives in float64, with autograd."""
    features, logits = (t.double().clone().requires_grad_() for t in call[:2])
    scores = 0.7 * logits
    out = scores.softmax(1).mT @ features
    out.backward(call.grad_out.double())
    return {
        "out": out.detach(),
        "lse": scores.detach().logsumexp(1),
        "grad_features": features.grad,
        "grad_logits": logits.grad,
    }


def assert_same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        different = int((tensor != right[name]).sum())
        assert different == 0, f"{name}: {different} of {tensor.numel()} differ"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_change_no_bit(run, dtype: torch.dtype) -> None:
    call = make_call(2, 37, 35, 21, dtype)
    dense = run(call)
    assert_same_bits(run(call, "nchw"), dense)
    spread = run(call, "gaps")
    assert_same_bits(spread, dense)
    for name, tensor in spread.items():
        if name != "lse":
            room = tensor._base
            assert int(room.isnan().sum()) == room.numel() - tensor.numel(), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_schedule_changes_no_bit(
    run, subject: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    call = make_call(1, 280, 6, 19, dtype)
    expected = run(call)
    for seed in (1, 2):
        if subject == "emulated":
            request.getfixturevalue("emulator").configure(seed=seed)
        assert_same_bits(run(call), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lse_is_as_exact_as_its_sums(run, dtype: torch.dtype) -> None:
    call = make_call(2, 300, 3, 5, dtype)
    expected = formula(call)["lse"]
    eps = torch.finfo(sums_of(dtype)).eps
    # Scores in units of log2 are rounded once more, and so is their maximum.
    bound = eps * (8 + 300**0.5 + 4 * (0.7 * call.logits.double()).abs().amax())
    assert (run(call)["lse"].cpu().double() - expected).abs().max() <= bound


@pytest.mark.parametrize("regions", [20, 40, 70], ids=lambda k: f"K{k}")
def test_tf32_products_are_rounded_to_nearest(run, regions: int) -> None:
    """Each width of the tensor-core kernels; operands are off by at most half a step."""
    call = make_call(1, 70, 12, regions)
    results, exact = run(call, tf32=True), formula(call)
    for name in ("out", "grad_features", "grad_logits"):
        error = (results[name].cpu().double() - exact[name]).norm() / exact[name].norm()
        # Two operands, errors even between -step / 2 and step / 2, and some room for the few.
        assert error < 2.0**-10 * (2 / 12) ** 0.5 * 1.5, name
    assert (results["out"].cpu() - run(call)["out"].cpu()).abs().max() > 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("wanted", ["f", "l", ""])
def test_absent_gradients_change_no_bit(run, wanted: str, dtype: torch.dtype) -> None:
    call = make_call(1, 35, 18, 20, dtype)
    every, some = run(call), run(call, wanted=wanted)
    assert_same_bits(some, {name: tensor for name, tensor in every.items() if name in some})
    present = {name for name in some if name.startswith("grad_")}
    assert present == {f"grad_{n}" for n in ("features", "logits") if n[0] in wanted}


only_emulated = pytest.mark.parametrize("subject", ["emulated"], indirect=True)


@only_emulated
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("wanted", ["f", "l", "fl", ""])
def test_only_what_is_wanted_is_launched(run, emulator, wanted: str, dtype: torch.dtype) -> None:
    run(make_call(1, 3, 2, 2, dtype), wanted=wanted)
    launches = emulator.launches()
    kernels = [launch.kernel for launch in launches]
    assert sum("delta" in kernel for kernel in kernels) == int("l" in wanted)
    assert len(kernels) == 2 + len(wanted) + int("l" in wanted)
    assert ("mma" in kernels[0]) == (dtype == torch.bfloat16)
    # Every GPU from sm_80 on has it.
    assert all(launch.shared_bytes <= SM_86_SHARED for launch in launches)


@only_emulated
def test_widest_blocks_fit_every_gpu(run, emulator) -> None:
    for regions in (2, 33, 65):
        run(make_call(1, 2, 9, regions, torch.float16))
        assert all(launch.shared_bytes <= SM_86_SHARED for launch in emulator.launches())


@only_emulated
def test_rows_that_cannot_be_copied_are_refused(run, emulator) -> None:
    ops = torch.ops.ocnet_emulated
    features, logits = torch.zeros(1, 4, 9).half(), torch.zeros(1, 4, 2).half()
    out, lse = torch.zeros(1, 2, 9).half(), torch.zeros(1, 2)
    text = "spatial_gather_fwd: features must have channel stride 1 and rows aligned to 16 bytes"
    with pytest.raises(RuntimeError, match=text):
        ops.spatial_gather_fwd(features, logits, 1.0, False, out, lse, None)


@only_emulated
def test_shapes_that_do_not_fit_are_refused(run, emulator) -> None:
    ops = torch.ops.ocnet_emulated
    features, logits = torch.zeros(1, 4, 8), torch.zeros(1, 5, 2)
    out, lse = torch.zeros(1, 2, 8), torch.zeros(1, 2)
    with pytest.raises(RuntimeError, match=r"logits must have shape \(1, 4, 2\), got \(1, 5, 2\)"):
        ops.spatial_gather_fwd(features, logits, 1.0, False, out, lse, None)
