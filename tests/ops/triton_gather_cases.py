# SPDX-License-Identifier: MIT
"""The Triton kernels of spatial gathering, on the CPU in Triton's interpreter.

``test_triton_interpreter.py`` runs this file in a process of its own, because Triton reads
``TRITON_INTERPRET`` when the kernels are imported; pytest does not collect it by itself.
"""

import pytest
import torch

from ocnet._env import triton_interpreted
from ocnet.ops.spatial_gather import triton_backend
from ocnet.ops.spatial_gather.problem import BackwardCall, ForwardCall, Problem
from ocnet.testing import assert_as_accurate, assert_same_nonfinite
from ocnet.testing.gather import (
    GatherCase,
    GatherInputs,
    eager_gathers,
    gather_magnitudes,
    gather_oracle,
    make_gather_inputs,
    run_gather,
)

# NumPy warns of every inf - inf that the interpreter computes; a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

INF, NAN = float("inf"), float("nan")
FP32, FP16 = torch.float32, torch.float16


def test_this_process_interprets() -> None:
    assert triton_interpreted()


def check(inputs: GatherInputs, label: str) -> None:
    actual, oracle = run_gather(inputs, "triton").named(), gather_oracle(inputs).named()
    eager = [run.named() for run in eager_gathers(inputs)]
    sizes = gather_magnitudes(inputs).named()
    (_, channels, h, w), regions = inputs.features.shape, inputs.logits.shape[1]
    terms = channels + regions + h * w
    for name, result in actual.items():
        runs = [run[name] for run in eager]
        assert_as_accurate(f"{label}: {name}", result, oracle[name], runs, sizes[name], terms)


# Regions around every tile, positions around every tile and part, both kinds of channels.
CASES = [
    GatherCase(1, 1, 1, (1, 1)),
    GatherCase(1, 1, 1, (1, 1), FP16),
    GatherCase(2, 3, 16, (1, 31), FP32),
    GatherCase(2, 3, 17, (5, 7), FP16, "channels_last"),
    GatherCase(2, 40, 33, (9, 15), FP16, "cropped", scale=-0.5),
    GatherCase(2, 40, 3, (13, 5), FP32, "expanded", spread=8.0),
    GatherCase(1, 130, 65, (10, 14), FP16),
    GatherCase(1, 260, 19, (7, 13), FP16, "channels_last"),
    GatherCase(1, 40, 130, (3, 11), FP16, "channels_last", scale=0.0),
    GatherCase(1, 70, 70, (3, 11), FP32, "channels_last"),
    GatherCase(1, 8, 5, (23, 29), FP16),
    GatherCase(1, 8, 5, (23, 29), FP32, "channels_last", spread=8.0),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_small_maps(case: GatherCase) -> None:
    check(make_gather_inputs(case), str(case))


@pytest.mark.parametrize("number", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("where", ["features", "logits", "grad_out"])
def test_nonfinite_input_stays_where_the_formula_puts_it(where: str, number: float) -> None:
    for dtype in (FP32, FP16):
        inputs = make_gather_inputs(GatherCase(2, 9, 6, (19, 17), dtype, spread=1.0), 5)
        with torch.no_grad():
            getattr(inputs, where)[0, 2, 3, 0] = number
        actual, oracle = run_gather(inputs, "triton").named(), gather_oracle(inputs).named()
        for name, tensor in actual.items():
            assert_same_nonfinite(f"{name} with {number} in {where}", tensor, oracle[name])


@pytest.mark.parametrize("dead", [1, 64, 300])
def test_region_recovers_from_positions_at_minus_infinity(dead: int) -> None:
    inputs = make_gather_inputs(GatherCase(1, 4, 3, (1, dead + 7)))
    with torch.no_grad():
        inputs.logits[:, :2, :, :dead] = -INF
    check(inputs, f"{dead} dead positions")


def test_tf32_products_are_rounded_to_nearest() -> None:
    """Numbers half a step apart in TF32: cut off instead, every sum would be lower."""
    n, l, c, k = 1, 70, 9, 5
    features = (1 + torch.rand(n, l, c)) * 1.0003
    logits, grad_out = torch.randn(n, l, k), torch.randn(n, k, c)
    out, lse = torch.empty(n, k, c), torch.empty(n, k)
    triton_backend.forward(ForwardCall(features, logits, 1.0, True, out, lse, None))
    exact = logits.double().softmax(1).mT @ features.double()
    step = 2.0**-10
    assert (out - exact).abs().max() < step / 2
    assert (out - exact).mean().abs() < step / 16
    grads = torch.empty(n, l, c), torch.empty(n, l, k)
    triton_backend.backward(
        BackwardCall(grad_out, features, logits, out, lse, None, 1.0, True, *grads)
    )
    weights = logits.double().softmax(1)
    products = features.double() @ grad_out.double().mT
    wanted = weights * (products - (weights * products).sum(1, keepdim=True))
    torch.testing.assert_close(grads[0].double(), weights @ grad_out.double(), rtol=0, atol=step)
    torch.testing.assert_close(grads[1].double(), wanted, rtol=0, atol=step)


def test_wanted_gradients_alone_are_the_same_bits_and_gaps_stay() -> None:
    n, l, c, k = 2, 37, 5, 7
    features = torch.randn(n, 3 * l, 2 * c)[:, ::3, ::2]
    logits, grad_out = torch.randn(k, l, n).permute(2, 1, 0), torch.randn(n, c, k).mT
    board = torch.full((c + 2, n, k + 3), 7.0)
    out, lse = board[1:-1, :, 1:-2].permute(1, 2, 0), torch.empty(n, k)
    triton_backend.forward(ForwardCall(features, logits, 0.5, False, out, lse, None))
    scores = 0.5 * logits.double()
    torch.testing.assert_close(out, (scores.softmax(1).mT @ features.double()).float())
    torch.testing.assert_close(lse, scores.logsumexp(1).float())
    assert (board[[0, -1]] == 7).all()
    assert (board[:, :, [0, -1, -2]] == 7).all()
    results: list[list[torch.Tensor]] = [[], []]
    for wanted in ((True, True), (True, False), (False, True)):
        grads = [
            torch.full_like(source, NAN) if want else None
            for want, source in zip(wanted, (features, logits), strict=True)
        ]
        call = BackwardCall(grad_out, features, logits, out, lse, None, 0.5, False, *grads)
        triton_backend.backward(call)
        for found, grad in zip(results, grads, strict=True):
            if grad is not None:
                found.append(grad)
    assert [len(found) for found in results] == [2, 2]
    assert all(torch.equal(found[0], found[1]) for found in results)


def test_refusals_in_the_interpreter() -> None:
    def problem(dtype: torch.dtype, c: int = 8, k: int = 8, device: str = "cpu") -> Problem:
        return Problem(torch.device(device), dtype, 1, 4, c, k)

    assert triton_backend.supports(problem(FP32, 1024, 512)).ok
    assert triton_backend.supports(problem(FP16)).ok
    for refused, word in (
        (problem(torch.bfloat16), "bfloat16"),
        (problem(torch.float64), "float64"),
        (problem(FP32, 1025), "1025"),
        (problem(FP32, 8, 513), "513"),
        (problem(FP32, device="cuda"), "cuda"),
    ):
        support = triton_backend.supports(refused)
        assert not support.ok
        assert word in support.reason
