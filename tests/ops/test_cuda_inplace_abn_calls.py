# SPDX-License-Identifier: MIT
"""Statistics of other ranks, what calls launch and what they refuse: CUDA kernels of in-place ABN."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ocnet.ops.inplace_abn import reference
from ocnet.ops.inplace_abn.problem import ELU, IDENTITY, RELU, StatsCall, accumulator
from tests.ops.abn_calls import (
    EPS,
    Call,
    assert_same_bits,
    assert_within_rounding,
    exact_forward,
    forward_sizes,
)
from tests.ops.abn_running import (
    FAMILIES,
    NAN,
    SUBJECTS,
    families,
    kernels,
    only_emulated,
)

pytestmark = pytest.mark.native

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


# --- statistics of other ranks ---


@pytest.mark.parametrize("parts", [3, 200])
@pytest.mark.parametrize("shape", [(3, 5, 49), (45, 7)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_statistics_are_merged(
    runner, dtype: torch.dtype, shape: tuple[int, ...], parts: int
) -> None:
    """Of ranks of other sizes, every third without any numbers."""
    call = Call(shape, dtype, residual=True)
    tensors = runner.draw(call)
    c, rows = shape[1], len(shape) == 2
    packed = torch.zeros(parts, 2 * c + 1, dtype=accumulator(dtype), device=runner.device)
    everything = []
    for part in range(parts):
        if part % 3 == 1:
            continue
        own_shape = (4 + part % 5, c) if rows else (1 + part % 2, c, 9 + part % 4)
        own = runner.draw(Call(own_shape, dtype, mean=part % 7, seed=part)).x
        if parts == 3:
            runner.ops.inplace_abn_stats(own, packed[part])
        else:
            reference.stats(StatsCall(own, packed[part]))
        everything.append(own.movedim(1, 0).flatten(1).double())
    assert packed[packed[:, -1] > 0, -1].tolist() == [t.shape[1] for t in everything]
    actual = runner.forward(call, tensors, packed=packed)
    exact = exact_forward(call, tensors, packed)
    sizes = forward_sizes(call, tensors, exact)
    alike = torch.cat(everything, 1).cpu()
    around = alike.abs().mean(1)
    sizes["mean"] = around
    sizes["var"] = alike.square().mean(1)
    sizes["new_mean"] = tensors.running_mean.double().cpu().abs() + around
    sizes["new_var"] = tensors.running_var.double().cpu() + sizes["var"]
    assert_within_rounding(actual, exact, sizes, alike.shape[1])
    torch.testing.assert_close(exact["mean"], alike.mean(1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(exact["var"], alike.var(1, correction=0), rtol=1e-3, atol=1e-3)


@only_emulated
@families
@pytest.mark.parametrize("training", [True, False])
def test_two_steps_are_as_exact_as_one(runner, configure, family: str, training: bool) -> None:
    shape, settings = FAMILIES[family]
    configure(**settings)
    for dtype in (torch.float32, torch.float16):
        call = Call(shape, dtype, ELU, 1.0, training, residual=True)
        tensors = runner.draw(call)
        forward = runner.forward(call, tensors)
        runner.check_backward(call, tensors, forward, steps=True)


def test_the_bound_of_normalised_numbers_is_kept(runner) -> None:
    """Where a tiny scale makes noise of what is recovered, it is no larger than it can have been."""
    call = Call((2, 3, 16), torch.bfloat16)
    tensors = runner.draw(call)
    tensors.weight.fill_(1e-6)
    tensors.bias.fill_(1000.3)  # is stored as 1000
    forward = runner.forward(call, tensors)
    for steps in (False, True):
        runner.check_backward(call, tensors, forward, steps=steps)
    bound = (1e-6 + 1e-4) * 31**0.5
    assert float((forward["out"].double() - 1000.3).abs().min()) > bound


# --- what is launched, and what is refused ---

EVERY = ["grad_x", "grad_residual", "grad_weight", "grad_bias", "grad_slope"]
WANTED = [
    EVERY,
    *([name] for name in EVERY),
    ["grad_weight", "grad_residual"],
    ["grad_x", "grad_residual"],
    [],
]


@families
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wanted", WANTED, ids="-".join)
def test_absent_gradients_change_no_bit(
    runner, configure, family: str, training: bool, wanted: list[str]
) -> None:
    shape, settings = FAMILIES[family]
    configure(**settings)
    call = Call(shape, torch.float32, residual=True, prelu=True, training=training)
    tensors = runner.draw(call)
    forward = runner.forward(call, tensors)
    every = runner.backward(call, tensors, forward)
    some = runner.backward(call, tensors, forward, wanted=wanted)
    if "grad_x" not in wanted and training and family != "stream":
        # Sums are then made, or merged, by another kernel in another order.
        for name, tensor in some.items():
            torch.testing.assert_close(tensor, every[name], rtol=1e-5, atol=1e-5)
    else:
        assert_same_bits(some, {name: every[name] for name in some})


@only_emulated
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wanted", WANTED, ids="-".join)
def test_nothing_is_launched_for_absent_gradients(
    runner, emulator, training: bool, wanted: list[str]
) -> None:
    call = Call((2, 3, 49), torch.float32, residual=True, prelu=True, training=training)
    tensors = runner.draw(call)
    forward = runner.forward(call, tensors)
    emulator.configure()
    runner.backward(call, tensors, forward, wanted=wanted)
    vectors = any(name in wanted for name in EVERY[2:])
    maps = "grad_x" in wanted or "grad_residual" in wanted
    if training and "grad_x" in wanted:
        expected = ["bwd_slab"]
    elif training:
        expected = ["bwd_reduce_planes", "finish"] * vectors + ["bwd_apply_planes"] * maps
    else:
        expected = ["bwd_reduce_planes", "finish"] if vectors else ["bwd_apply_planes"] * maps
    assert kernels(emulator) == expected


def test_frozen_identity_needs_no_output(runner) -> None:
    """Its gradient is read alone, so that the output may be anything."""
    call = Call((2, 3, 49), torch.float32, IDENTITY, training=False)
    tensors = runner.draw(call)
    forward = runner.forward(call, tensors)
    plain = runner.backward(call, tensors, forward, wanted=["grad_x"])
    forward["out"].fill_(NAN)
    assert_same_bits(runner.backward(call, tensors, forward, wanted=["grad_x"]), plain)


def refused(run: Callable[[], Any], match: str) -> None:
    with pytest.raises(RuntimeError, match=match):
        run()


def test_what_protects_memory_is_checked(runner) -> None:
    call = Call((2, 4, 8))
    tensors = runner.draw(call)
    forward = runner.forward(call, tensors)

    def changed(**values: Any) -> Callable[[], Any]:
        return lambda: runner.forward(call, dataclasses.replace(tensors, **values))

    odd = torch.empty(65, device=runner.device)[1:].view(2, 4, 8)
    refused(changed(x=odd), "x must start at a multiple of 16 bytes")
    refused(changed(x=tensors.x.mT.contiguous().mT), "x must be contiguous")
    refused(changed(x=tensors.x[None]), "x must have 3 dimensions")
    refused(changed(residual=tensors.x[:1]), r"residual must have shape \(2, 4, 8\)")
    refused(changed(residual=tensors.x.double()), "residual must have dtype Float")
    refused(changed(weight=tensors.weight[:3]), r"weight must have shape \(4\)")
    refused(changed(weight=tensors.weight.double()), "weight must have dtype Float")
    refused(changed(running_mean=tensors.running_mean[:1]), "running_mean must have shape")
    packed = torch.zeros(0, 9, device=runner.device)
    refused(lambda: runner.forward(call, tensors, packed=packed), "packed must have shape")
    relu = dataclasses.replace(call, activation=RELU)
    refused(lambda: runner.forward(relu, tensors), "activation must be a code from 0 to 2")
    refused(
        lambda: runner.backward(relu, tensors, forward), "activation must be a code from 0 to 2"
    )
    short = dataclasses.replace(tensors, grad_out=tensors.grad_out[:, :, :4].contiguous())
    refused(lambda: runner.backward(call, short, forward), "grad_out must have shape")
    none = [None] * 4
    refused(
        lambda: runner.ops.inplace_abn_fwd(
            tensors.x, *none, None, None, None, False, 0.1, EPS, EPS, 0, 1.0, False,
            torch.empty_like(tensors.x), *none,
        ),
        "running_mean must be given out of training",
    )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("subject", ["cuda"], indirect=True)
def test_a_graph_captures_both_passes(runner) -> None:
    for shape in ((3, 5, 49), (45, 7)):
        call = Call(shape, torch.float32)
        tensors = runner.draw(call)
        expected = runner.both(call)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            forward = runner.forward(call, tensors)
            captured = forward | runner.backward(call, tensors, forward)
        graph.replay()
        assert_same_bits(captured, expected)
