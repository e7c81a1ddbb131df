# SPDX-License-Identifier: MIT
"""Numbers of the backward kernels on Hopper's own instructions: gates, scales, what is not finite.

Beside the gates, the kernels for every device: they round the same numbers, and sum in fp32 too.
"""

import pytest
import torch
from torch import Tensor

from ocnet.testing import FEATURES, assert_same_nonfinite
from tests.ops.hopper_backward import Backward, each_precision, each_sharing
from tests.ops.test_cuda_backward import (
    GATES,
    Call,
    assert_below_gates,
    assert_near,
    assert_same_bits,
    complete_call,
    make_call,
)
from tests.ops.test_cuda_kernels import INF, NAN

pytestmark = pytest.mark.native


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def subject(request: pytest.FixtureRequest) -> str:
    return request.param


def errors(call: Call, grads: dict[str, Tensor]) -> dict[str, float]:
    """Of whole gradients, relative to their norms."""
    return {
        name: float((grad.double().cpu() - call.exact[name]).norm() / call.exact[name].norm())
        for name, grad in grads.items()
    }


def assert_as_exact_as_portable(
    call: Call, backward: Backward, grads: dict[str, Tensor], sums: dict[str, float]
) -> None:
    """But for what sums of fp32 lose, which have another order there."""
    portable = errors(call, backward.portable(call))
    for name, error in errors(call, grads).items():
        allowed = 1.02 * portable[name] + sums.get(name, 0)
        assert error <= allowed, f"{name}: {error:.3e}, allowed {allowed:.3e}"


@each_precision
@each_sharing
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("channels", [(64, 40), (128, 72)], ids=str)
def test_errors_stay_below_the_gates(hopper_backward, channels, features, keys, precision) -> None:
    call = make_call(precision, 1, 70, keys, *channels, features)
    grads = hopper_backward(call)
    assert_below_gates(call, grads, precision)
    assert_as_exact_as_portable(call, hopper_backward, grads, {})


def lost_by_sums(call: Call) -> dict[str, float]:
    """What the kernels' own sums may lose, as in test_accuracy.py: four times the plain formula's."""
    query, value = (t.float().requires_grad_() for t in (call.query, call.value))
    key = query if call.key is None else call.key.float().requires_grad_()
    out = (call.scale * (query @ key.mT)).softmax(-1) @ value
    out.backward(call.grad_out.float())
    grads = {"grad_query": query.grad, "grad_value": value.grad}
    if call.key is not None:
        grads["grad_key"] = key.grad
    return {name: 4 * error for name, error in errors(call, grads).items()}


@pytest.mark.slow
@each_precision
@each_sharing
@pytest.mark.parametrize("features", FEATURES)
def test_errors_of_wide_maps(hopper_backward, features, keys, precision: str) -> None:
    call = make_call(precision, 1, 300, keys and 320, 256, 256, features)
    grads = hopper_backward(call)
    sums = lost_by_sums(call)
    for name, error in errors(call, grads).items():
        gate = GATES[precision][name == "grad_value"] + sums[name]
        assert error <= gate, f"{name}: {error:.3e}, allowed {gate:.3e}"
    assert_as_exact_as_portable(call, hopper_backward, grads, sums)


@each_precision
def test_peaked_features_need_the_residual(hopper_backward, precision: str) -> None:
    """Without one, delta is that of the rounded output; absent is the same as zero."""
    call = make_call(precision, 1, 70, None, 64, 64, "peaked")
    lost = call._replace(residual=None)
    grads = hopper_backward(lost)
    name = "grad_query"
    assert errors(lost, grads)[name] > 3 * errors(call, hopper_backward(call))[name]
    zeros = call._replace(residual=torch.zeros_like(call.out))
    assert_same_bits(grads, hopper_backward(zeros))


# --- scales ---


@each_precision
@each_sharing
@pytest.mark.parametrize("scale", [-0.5, 4.0, 64.0], ids=str)
def test_scales(hopper_backward, scale: float, keys, precision: str) -> None:
    call = make_call(precision, 1, 66, keys, 24, 40, scale=scale)
    assert_near(call, hopper_backward(call), precision)


@each_sharing
def test_scale_0(hopper_backward: Backward, keys) -> None:
    call = make_call("float16", 1, 66, keys, 24, 40, scale=0.0)
    grads = hopper_backward(call)
    assert_near(call, {"grad_value": grads.pop("grad_value")}, "float16")
    assert all(bool((grad == 0).all()) for grad in grads.values())


@each_precision
@each_sharing
def test_padding_of_steps_weighs_nothing(hopper_backward, keys, precision: str) -> None:
    """All scores are below -190: keys that are no tokens score 0, and exp(0 - lse) overflows."""
    clean = make_call(precision, 1, 70, keys, 24, 40)
    for features in (clean.query, clean.key):
        if features is not None:
            features.abs_().add_(1)
    call = complete_call(*clean[:4], scale=-8.0)
    assert float(call.lse.max()) < -180
    assert_near(call, hopper_backward(call), precision)


def test_few_keys_far_apart_in_float16(hopper_backward: Backward) -> None:
    """Weights of 2e-5 are subnormal in float16; the kernel multiplies them by a power of two."""
    call = make_call("float16", 1, 2, 4, 8, 16)
    # Two queries of 50,000 keys that score alike: of those, four are looked at.
    away = call.lse + torch.full_like(call.lse, 50_000 / 4).log()
    grad = hopper_backward(call._replace(lse=away), "v")["grad_value"].double()
    exact = call.exact["grad_value"] * 4 / 50_000
    # grad_value itself is subnormal, with steps of 2^-24.
    assert (grad - exact).abs().max() <= 2.0**-25 + 2.0**-10 * exact.abs().max()


# --- what is not finite ---


@pytest.mark.parametrize("number", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("where", ["query", "key", "value", "grad_out", "both"])
def test_nonfinite_input(hopper_backward, where: str, number: float) -> None:
    """In the last token of a step that is not full, of the first image."""
    clean = make_call("bfloat16", 2, 67, None if where == "both" else 70, 3, 5, "peaked")
    name = "query" if where == "both" else where
    getattr(clean, name)[0, -1, 1] = number
    call = complete_call(*clean[:4], clean.scale)._replace(residual=None)
    for grad, tensor in hopper_backward(call).items():
        label = f"{grad} with {number} in {where}"
        # An infinite incoming gradient makes inf - inf, whose kind depends on the order of terms.
        assert_same_nonfinite(label, tensor, call.exact[grad], tell_apart=where != "grad_out")


@each_precision
def test_keys_that_nobody_looks_at(hopper_backward: Backward, precision: str) -> None:
    """Scores of -inf, but NaN against the zeros behind the last query: 0 * inf never happens."""
    clean = make_call(precision, 1, 70, 75, 16, 24)
    clean.query.abs_().add_(0.1)
    clean.key[:, 7] = -INF
    call = complete_call(*clean[:4], clean.scale)
    grads = hopper_backward(call, "kv")
    alive = torch.arange(75) != 7
    for name, grad in grads.items():
        assert bool((grad[:, 7] == 0).all()), name
        assert bool(grad.isfinite().all()), name
    without = call._replace(key=call.key[:, alive], value=call.value[:, alive])
    same = hopper_backward(without, "kv")
    for name, grad in grads.items():
        assert torch.equal(grad[:, alive], same[name]), name


@each_precision
def test_rows_without_a_key_are_nan(hopper_backward: Backward, precision: str) -> None:
    """All their scores are -inf, and lse is: as the formula says, all keys share the NaN."""
    clean = make_call(precision, 2, 70, 75, 16, 24)
    clean.query.abs_().add_(0.1)
    clean.query[0, 5] = -INF
    clean.key.abs_().add_(0.1)
    call = complete_call(*clean[:4], clean.scale)
    assert call.lse[0, 5] == -INF
    for name, grad in hopper_backward(call).items():
        assert bool(grad.isnan().any()), name
        assert_same_nonfinite(name, grad, call.exact[name], tell_apart=True)


@each_precision
@pytest.mark.parametrize("number", [NAN, -INF], ids=str)
def test_lse_reaches_what_it_is_for(hopper_backward, number: float, precision: str) -> None:
    """Other rows keep their bits, and the sums over rows do not hide it."""
    call = make_call(precision, 2, 70, 75, 16, 24)
    clean = hopper_backward(call)
    lse = call.lse.clone()
    lse[0, 66] = number
    grads = hopper_backward(call._replace(lse=lse))
    others = torch.arange(70) != 66
    assert not bool(grads["grad_query"][0, 66].isfinite().any())
    assert torch.equal(grads["grad_query"][0, others], clean["grad_query"][0, others])
    for name, grad in grads.items():
        assert torch.equal(grad[1], clean[name][1]), name
        assert name == "grad_query" or not bool(grad[0].isfinite().any()), name


def test_infinities_stay_with_their_token(hopper_backward: Backward) -> None:
    """Padding of tiles has weight 0, and 0 * inf never happens."""
    call = make_call("bfloat16", 1, 70, 75, 16, 16)
    call.value[0, 2, 3] = INF
    call.out[0, :, 3] = INF
    assert hopper_backward(call)["grad_value"].isfinite().all()  # does not depend on the value
    call = make_call("bfloat16", 1, 70, 75, 16, 16)
    call.grad_out[0, 4, 1] = INF
    grads = hopper_backward(call)
    assert grads["grad_query"][0, 4].isnan().all()
    others = torch.arange(70) != 4
    assert grads["grad_query"][0, others].isfinite().all()
    assert grads["grad_value"][0, :, 1].isinf().all()
    assert grads["grad_value"][0, :, torch.arange(16) != 1].isfinite().all()
