# SPDX-License-Identifier: MIT
"""How near every back end comes to float64 on the features that networks make, in every precision.

The figure is the error of a whole result relative to its norm (Frobenius), against float64 on the very
numbers of the inputs. To the gates is added what sums in float32 (float64) lose on the same features:
where the softmax sits on the diagonal the gradient of the features is a difference of two numbers a
thousand times its size. For TF32 also what rounding the inputs to it does.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ocnet.ops.oc_attention import autograd
from ocnet.ops.oc_attention.reference import naive_attention
from ocnet.testing import (
    FEATURES,
    AttentionCase,
    Results,
    eager_results,
    make_inputs,
    oracle_results,
    run_op,
)
from ocnet.testing.inputs import AttentionInputs
from tests.ops.conftest import HOPPER_SUBJECTS

SEED = 1
NARROW = (torch.bfloat16, torch.float16)


class Gate(NamedTuple):
    out: float
    features: float  # gradients of query and key
    value: float

    def of(self, name: str) -> float:
        return {"out": self.out, "grad_value": self.value}.get(name, self.features)


GATES = {
    "bfloat16": Gate(3e-3, 5e-3, 3e-3),
    "float16": Gate(4e-4, 6e-4, 4e-4),
    "tf32": Gate(6e-4, 1e-3, 6e-4),
    "float32": Gate(2e-6, 5e-6, 2e-6),
    "float64": Gate(1e-13, 1e-12, 1e-13),
}


def relative(actual: Tensor, oracle: Tensor) -> float:
    wanted = oracle.double().cpu()
    return float((actual.double().cpu() - wanted).norm() / wanted.norm())


def nearest_tf32(maps: Tensor) -> Tensor:
    bits = maps.detach().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def _in(inputs: AttentionInputs, narrowed: Callable[[Tensor], Tensor]) -> AttentionInputs:
    """The same call on other numbers; shared keys stay shared."""
    query, value = (narrowed(t.detach()).requires_grad_() for t in (inputs.query, inputs.value))
    shared = inputs.key is inputs.query
    key = query if shared else narrowed(inputs.key.detach()).requires_grad_()
    return AttentionInputs(query, key, value, narrowed(inputs.grad_out), inputs.scale)


def _rounded_once(inputs: AttentionInputs) -> dict[str, Tensor]:
    """Return what exact products make of rounded probabilities, rounded: the sums over pixels."""
    query, key, value, grad = (
        t.detach().double().flatten(2)
        for t in (inputs.query, inputs.key, inputs.value, inputs.grad_out)
    )
    factor = query.shape[1] ** -0.5 if inputs.scale is None else inputs.scale
    weights = torch.softmax(factor * query.mT @ key, dim=-1).to(inputs.value.dtype).double()
    sums = {"out": value @ weights.mT, "grad_value": grad @ weights}
    maps = {"out": inputs.grad_out, "grad_value": inputs.value}
    return {name: sums[name].view(like.shape).to(like.dtype) for name, like in maps.items()}


class Expected(NamedTuple):
    """Results of one call in float64, and what other arithmetic loses on them, by name."""

    exact: dict[str, Tensor]
    narrow: dict[str, float]
    sums: dict[str, float]
    tf32: dict[str, float]


@functools.cache
def expected(case: AttentionCase) -> Expected:
    """Return what is expected of a case, made on the CPU.

    The kernels' own sums may lose four times what the plain formula's do: the formula forms D as the sum
    of P * dP, so that the error of a dP that stands alone cancels. From the output, D is a sum of its
    own, and so is the context that it is made of.

    In 16 bits, the plain formula's own error depends on whether this machine's products round. Those that
    do round the probabilities, which no kernel on such a machine avoids.
    """
    inputs = make_inputs(case, SEED)
    exact = oracle_results(inputs).named()

    def lost(run: Results) -> dict[str, float]:
        return {name: relative(tensor, exact[name]) for name, tensor in run.named().items()}

    wide = torch.promote_types(case.dtype, torch.float32)
    eager = lost(eager_results(_in(inputs, lambda t: t))[0])
    products = {name: relative(t, exact[name]) for name, t in _rounded_once(inputs).items()}
    narrow = {name: max(error, products.get(name, 0)) for name, error in eager.items()}
    sums = lost(eager_results(_in(inputs, lambda t: t.to(wide)))[1])
    tf32 = lost(oracle_results(_in(inputs, nearest_tf32))) if case.dtype == torch.float32 else {}
    return Expected(exact, narrow, {name: 4 * error for name, error in sums.items()}, tf32)


@pytest.fixture(params=HOPPER_SUBJECTS)
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def precisions(subject: str, dtypes) -> list[str]:
    """Every dtype that the back end takes, and TF32 where it has tensor cores."""
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    has_tf32 = torch.float32 in dtypes and subject not in ("reference", "cpu")
    return [*names, "tf32"] if has_tf32 else names


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("features", FEATURES)
def test_errors_stay_below_the_gates(
    backend: str,
    device: str,
    precisions: list[str],
    features: str,
    shared: bool,
    small: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    channels, size = (64, (5, 8)) if small else (256, (24, 24))
    for precision in precisions:
        monkeypatch.setattr(autograd, "tf32_allowed", lambda _, p=precision: p == "tf32")
        dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
        case = AttentionCase(
            1, channels, channels, size, dtype=dtype, shared=shared, features=features
        )
        want = expected(case)
        for name, tensor in run_op(make_inputs(case, SEED, device), backend).named().items():
            gate = GATES[precision].of(name) + want.sums[name]
            if precision == "tf32":
                gate += want.tf32[name]
            error = relative(tensor, want.exact[name])
            assert error <= gate, f"{precision} {name}: {error:.2e}, allowed {gate:.2e}"
            if dtype in NARROW:
                assert error <= want.narrow[name], f"{precision} {name}: {want.narrow[name]:.2e}"


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_a_rounded_context_would_fail_the_gate(dtype: torch.dtype) -> None:
    """The gate sees what it is there for: D from a rounded output, where the softmax is peaked."""
    gate = GATES[str(dtype).removeprefix("torch.")]
    case = AttentionCase(1, 256, 256, (24, 24), dtype=dtype, shared=True, features="peaked")
    inputs = make_inputs(case, SEED)
    saved = torch.ops.ocnet.oc_attention_fwd(
        inputs.query, None, inputs.value, None, "reference", True
    )
    backward = functools.partial(
        torch.ops.ocnet.oc_attention_bwd, inputs.grad_out, inputs.query, None, inputs.value
    )
    want = expected(case)
    with torch.no_grad():
        out, lse, residual = saved
        kept, _, _ = backward(out, lse, residual, None, "reference", True, False, False)
        lost, _, _ = backward(
            out, lse, torch.zeros_like(residual), None, "reference", True, False, False
        )
    allowed = gate.features + want.sums["grad_query"]
    assert relative(kept, want.exact["grad_query"]) <= allowed
    assert relative(lost, want.exact["grad_query"]) > 10 * allowed


def test_feature_models_differ_in_how_peaked_they_are() -> None:
    """From almost uniform to almost one-hot, so that a gate on all four covers the range."""
    top = {}
    for name in FEATURES:
        case = AttentionCase(1, 256, 256, (24, 24), dtype=torch.float64, shared=True, features=name)
        query = make_inputs(case, SEED, requires_grad=False).query
        own = torch.eye(576, dtype=torch.float64).reshape(1, 576, 24, 24)
        # With the identity as value, attention returns its matrix.
        top[name] = float(naive_attention(query, query, own).amax(1).mean())
    assert top["peaked"] > 0.99
    assert top["activated"] < 0.9 * top["peaked"]
    assert top["smooth"] < 0.9 * top["peaked"]
    assert top["clustered"] < 0.9 * top["peaked"]
