# SPDX-License-Identifier: MIT
"""Every back end of in-place ABN against the plain formula in float64: values, gradients, edges."""

import dataclasses
import functools

import pytest
import torch

from ocnet.ops import explain, inplace_abn
from ocnet.ops.inplace_abn.reference import naive_inplace_abn
from ocnet.testing import assert_as_accurate
from ocnet.testing.abn import (
    ACTIVATIONS,
    EPS,
    ABNCase,
    ABNInputs,
    abn_scheme,
    make_abn_inputs,
    random_abn_cases,
    run_abn,
    run_naive_abn,
)

NARROW = (torch.bfloat16, torch.float16)


def decided_inputs(case: ABNCase, seed: int, device: str) -> ABNInputs:
    """Return inputs whose every branch is clear: none is near enough to 0 to be a matter of rounding."""
    while True:
        inputs = make_abn_inputs(case, seed, device)
        identity = dataclasses.replace(inputs.copy(torch.float64), slope=None)
        identity = dataclasses.replace(
            identity, case=dataclasses.replace(case, activation="identity")
        )
        y = run_naive_abn(identity, torch.float64)["out"]
        if case.dtype == torch.float64 or float(y.abs().min()) > 2e-6 * float(y.abs().max()):
            return inputs
        seed += 1000


def check(case: ABNCase, backend: str, device: str, seed: int = 0, inplace: bool = False) -> None:
    inputs = decided_inputs(case, seed, device)
    check_inputs(inputs, backend, inplace=inplace)


def check_inputs(inputs: ABNInputs, backend: str, inplace: bool = False) -> None:
    case = inputs.case
    actual, oracle = run_abn(inputs, backend, inplace=inplace), run_naive_abn(inputs, torch.float64)
    eager, (scheme, sizes) = run_naive_abn(inputs, case.dtype), abn_scheme(inputs)
    count = inputs.x.numel() // inputs.x.shape[1]
    assert actual.keys() == oracle.keys() == sizes.keys()
    for name, result in actual.items():
        runs = [eager[name].cpu(), scheme[name]]
        assert_as_accurate(
            f"{case}: {name}", result.cpu(), oracle[name].cpu(), runs, sizes[name], 8 + count
        )


@pytest.mark.parametrize("seed", range(10))
def test_random_legal_calls(backend: str, device: str, dtypes, seed: int, small: bool) -> None:
    count, side, channels = (4, 9, 20) if small else (12, 23, 70)
    cases = random_abn_cases(count, seed, dtypes, side, channels)
    for number, case in enumerate(cases):
        check(case, backend, device, 100 * seed + number, inplace=number % 3 == 0)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(("activation", "param"), ACTIVATIONS)
@pytest.mark.parametrize("training", [True, False])
def test_every_activation(
    backend: str, device: str, dtypes, activation: str, param: float, training: bool, layout: str
) -> None:
    for dtype in dtypes:
        for residual in (False, True):
            case = ABNCase(
                (2, 6, 5, 7), dtype, layout, "nchw", activation, param,
                training=training, residual=residual,
            )  # fmt: skip
            check(case, backend, device, 7)


@pytest.mark.parametrize("grad_layout", ["nchw", "channels_last", "expanded", "cropped"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "cropped", "transposed", "expanded"])
def test_layouts_of_input_and_gradient(
    backend: str, device: str, layout: str, grad_layout: str
) -> None:
    case = ABNCase((3, 8, 4, 9), torch.float32, layout, grad_layout, residual=True)
    inputs = decided_inputs(case, 3, device)
    check_inputs(inputs, backend)
    out = run_abn(inputs, backend)["out"]
    wanted = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert out.is_contiguous(memory_format=wanted)


@pytest.mark.parametrize(
    "shape",
    [(2, 3), (4, 1, 1), (1, 1, 2), (2, 5, 1, 1), (1, 3, 49), (2, 2, 7, 7), (3, 2, 2, 3, 5),
     (1, 2, 33, 45), (2, 130, 1, 3), (2, 2050, 1, 2)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_shapes(backend: str, device: str, dtypes, shape: tuple[int, ...], layout: str) -> None:
    for dtype in dtypes[:2]:
        check(ABNCase(shape, dtype, layout), backend, device, 1)


def test_three_steps_of_running_statistics(backend: str, device: str, dtypes) -> None:
    for dtype in dtypes:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        mine = [torch.zeros(4, dtype=wide, device=device), torch.ones(4, dtype=wide, device=device)]
        theirs = [torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)]
        for step in range(3):
            x = make_abn_inputs(ABNCase((3, 4, 5, 5), dtype, mean=2.0), step).x.detach()
            inplace_abn(x.to(device), None, None, *mine, momentum=0.3, backend=backend)
            naive_inplace_abn(x.double(), None, None, *theirs, momentum=0.3)
        for name, got, want in zip(("mean", "var"), mine, theirs, strict=True):
            size = 20 * want.abs()
            assert_as_accurate(name, got, want, [want.to(wide)], size, 75)


def test_momentum_on_the_device_is_the_same(backend: str, device: str) -> None:
    x = torch.randn(3, 4, 5, device=device) + 1
    runs = []
    for momentum in (0.25, torch.tensor(0.25, device=device)):
        moved = torch.zeros(4, device=device), torch.ones(4, device=device)
        inplace_abn(x, None, None, *moved, momentum=momentum, backend=backend)
        runs.append(moved)
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("wide", [torch.bfloat16, torch.float64], ids=str)
def test_vectors_of_another_dtype(backend: str, device: str, wide: torch.dtype) -> None:
    x = torch.randn(3, 4, 5, device=device, requires_grad=True)
    weight = torch.tensor([1.0, -0.5, 0.25, 2.0], dtype=wide, device=device, requires_grad=True)
    mean, var = torch.zeros(4, dtype=wide, device=device), torch.ones(4, dtype=wide, device=device)
    out = inplace_abn(x, weight, None, mean, var, backend=backend)
    (grad,) = torch.autograd.grad(out.square().sum(), weight)
    same = weight.detach().float().requires_grad_()
    again = inplace_abn(x, same, None, backend=backend)
    (wanted,) = torch.autograd.grad(again.square().sum(), same)
    assert torch.equal(out, again)
    assert torch.equal(grad, wanted.to(wide))
    torch.testing.assert_close(mean, (0.1 * x.mean((0, 2))).to(wide), check_dtype=True)


def test_a_large_mean_leaves_the_variance_right(backend: str, device: str, small: bool) -> None:
    size = 40 if small else 300
    for layout in ("nchw", "channels_last"):
        x = (1000 + torch.randn(2, 3, size, size, device=device)).to(torch.float32)
        x = x.contiguous(memory_format=getattr(torch, layout, torch.contiguous_format))
        var = torch.zeros(3, device=device)
        out = inplace_abn(
            x, None, None, torch.zeros(3, device=device), var, momentum=1.0, backend=backend
        )
        exact = x.double().var((0, 2, 3))
        assert float((var.double() - exact).abs().max()) < 1e-5
        oracle = naive_inplace_abn(x.double())
        # The input itself is rounded to 2^-14 here; the mean is right to far less than that.
        assert float((out.double() - oracle).abs().max()) < 2**-13


def test_constant_channel(backend: str, device: str, dtypes) -> None:
    """No variance: the output is the bias, at +0 the branch is the positive one, gradients are finite."""
    for dtype in dtypes:
        x = torch.full((2, 3, 4, 4), 0.3, dtype=dtype, device=device, requires_grad=True)
        bias = torch.tensor([0.0, 0.5, -0.5], device=device)
        bias = bias.to(torch.float64 if dtype == torch.float64 else torch.float32)
        out = inplace_abn(x, None, bias, backend=backend)
        want = torch.tensor([0.0, 0.5, -0.005], dtype=torch.float64).view(1, 3, 1, 1)
        error = (out.detach().cpu().double() - want).abs().max()
        # One over the root of eps is what rounding of the mean is multiplied by.
        assert float(error) <= 0.3 * 320 * 2 * torch.finfo(bias.dtype).eps + torch.finfo(dtype).eps
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_underflow_keeps_the_branch(backend: str, device: str, dtypes, dtype: torch.dtype) -> None:
    """What is stored as -0 was negative; what is +0 was not."""
    x = torch.tensor([[-1.0], [1.0], [-1e-3], [1e-3]], dtype=dtype, device=device)
    x.requires_grad_()
    slope = 1e-5 if dtype == torch.float16 else 1e-43
    mean, var = torch.zeros(1, device=device), torch.ones(1, device=device)
    out = inplace_abn(x, None, None, mean, var, False, activation_param=slope, backend=backend)
    assert out[2].item() == 0
    assert torch.signbit(out.detach()).flatten().tolist() == [True, False, True, False]
    (grad,) = torch.autograd.grad(out, x, torch.ones_like(out))
    assert (grad[[1, 3]] > 0.99).all()
    assert (grad[[0, 2]] < 1e-4).all()


@pytest.mark.parametrize(("zero", "factor"), [(0.0, 1.0), (-0.0, 0.25)])
@pytest.mark.parametrize("rows", [False, True])
def test_both_zeros(
    backend: str, device: str, dtypes, zero: float, factor: float, rows: bool
) -> None:
    """The sign bit of what was stored tells the branch."""
    for dtype in dtypes:
        out = torch.tensor([zero, 1.0, -1.0, 2.0], dtype=dtype, device=device)
        out = out.view(4, 1) if rows else out.view(1, 1, 4)
        var = torch.ones(1, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        grad, *_ = torch.ops.ocnet.inplace_abn_bwd(
            out, None, torch.ones_like(out), None, None, None, var.to(device), False, 1e-12, 1e-5,
            "leaky_relu", 0.25, False, backend, [True, False, False, False, False],
        )  # fmt: skip
        assert grad.flatten().tolist() == pytest.approx([factor, 1.0, 0.25, 1.0])


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_saturated_elu_is_finite(backend: str, device: str, dtypes, layout: str) -> None:
    for dtype in dtypes:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        x = torch.randn(4, 3, 6, 6, device=device).to(dtype)
        x = x.contiguous(memory_format=getattr(torch, layout, torch.contiguous_format))
        x.requires_grad_()
        weight = torch.full((3,), 40.0, dtype=wide, device=device, requires_grad=True)
        out = inplace_abn(x, weight, None, activation="elu", activation_param=1.0, backend=backend)
        assert (out == -1).any()
        for grad in torch.autograd.grad(out.sum(), (x, weight)):
            assert grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, -0.0, 1e-7, -1e-7])
def test_tiny_weights(backend: str, device: str, gamma: float) -> None:
    x = torch.randn(3, 2, 5, dtype=torch.float32, device=device, requires_grad=True)
    weight = torch.full((2,), gamma, device=device, requires_grad=True)
    for signed in (False, True):
        mode = "signed" if signed else "abs_eps"
        out = inplace_abn(x, weight, None, scale_mode=mode, backend=backend)
        grads = torch.autograd.grad(out.square().sum() + out.sum(), (x, weight))
        plain = weight.detach().double().requires_grad_(), x.detach().double().requires_grad_()
        exact = naive_inplace_abn(plain[1], plain[0], scale_mode=mode)
        wanted = torch.autograd.grad(exact.square().sum() + exact.sum(), plain[::-1])
        torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-10)
        # Without a bias the error of what is recovered is relative, however small the weight.
        torch.testing.assert_close(grads[1].double(), wanted[1], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(grads[0].double(), wanted[0], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, *NARROW], ids=str)
@pytest.mark.parametrize("ratio", [0.0, 5.0, 50.0])
def test_error_law(backend: str, device: str, dtypes, dtype: torch.dtype, ratio: float) -> None:
    """The recovered number is off by ``u (|x_hat| + |bias| / scale)``, read off the weight's gradient."""
    if dtype not in dtypes:
        pytest.skip(f"{backend} has no {dtype}")
    count = 64
    x = torch.randn(count, 32, 1, dtype=torch.float64).to(dtype).to(device).requires_grad_()
    bias = torch.full((32,), 0.1 * ratio, device=device)
    weight = torch.full((32,), 0.1, device=device, requires_grad=True)
    out = inplace_abn(x, weight, bias, activation="identity", backend=backend)
    wide = x.detach().double()
    normalised = (wide - wide.mean(0)) / (wide.var(0, correction=0) + EPS).sqrt()
    unit = torch.finfo(dtype).eps / 2
    errors = []
    # A gradient of 1 at one number reads that number.
    for position in range(8):
        grad_out = torch.zeros_like(out)
        grad_out[position] = 1
        (grad,) = torch.autograd.grad(out, weight, grad_out, retain_graph=True)
        errors.append(grad.double().cpu() - normalised[position, :, 0].cpu())
    rms = torch.stack(errors).square().mean().sqrt()
    law = unit * ((normalised.square().mean()).sqrt().cpu() + ratio)
    assert rms <= 2 * law + 16 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_error_law_of_a_recovered_residual(
    backend: str, device: str, dtypes, dtype: torch.dtype
) -> None:
    if dtype not in dtypes:
        pytest.skip(f"{backend} has no {dtype}")
    case = ABNCase((4, 16, 9, 9), dtype, residual=True, param=0.2)
    inputs = decided_inputs(case, 5, device)
    oracle, actual = run_naive_abn(inputs, torch.float64), run_abn(inputs, backend)
    _, sizes = abn_scheme(inputs)
    error = (actual["grad_x"].cpu().double() - oracle["grad_x"].cpu()).norm()
    unit = torch.finfo(dtype).eps / 2
    assert error <= 2 * unit * sizes["grad_x"].norm()
    assert error > 0


@pytest.mark.parametrize(("ratio", "better"), [(1.0, False), (300.0, True)])
def test_where_the_exact_residual_pays(
    backend: str, device: str, dtypes, ratio: float, better: bool
) -> None:
    """Recovering loses digits to the residual; rounding before the activation flips branches.

    In float16 one branch in thousands: only the first shows in every run.
    """
    for dtype in (dtype for dtype in dtypes if dtype in (NARROW if better else NARROW[:1])):
        inputs = make_abn_inputs(ABNCase((4, 16, 9, 9), dtype, residual=True), 5, device)
        with torch.no_grad():
            inputs.residual.mul_(ratio)
        oracle = run_naive_abn(inputs, torch.float64)["grad_x"]
        errors = []
        for exact in (False, True):
            out = inplace_abn(
                inputs.x, inputs.weight, inputs.bias, residual=inputs.residual, exact=exact,
                backend=backend,
            )  # fmt: skip
            (grad,) = torch.autograd.grad(out, inputs.x, inputs.grad_out)
            errors.append(float((grad.double() - oracle).norm()))
        assert (errors[1] < errors[0]) == better


def test_relu_is_legal_with_frozen_statistics(backend: str, device: str, dtypes) -> None:
    for dtype in dtypes:
        for residual in (False, True):
            case = ABNCase(
                (2, 6, 5, 7), dtype, activation="relu", training=False, residual=residual
            )
            inputs = decided_inputs(case, 2, device)
            check_inputs(inputs, backend)


@pytest.mark.parametrize("where", ["x", "grad_out", "residual", "weight", "bias", "slope"])
def test_nan_stays_in_its_channel(backend: str, device: str, dtypes, where: str) -> None:
    case = ABNCase((2, 4, 3, 5), dtypes[0], activation="prelu", param=0.2, residual=True)
    for layout in ("nchw", "channels_last"):
        inputs = make_abn_inputs(dataclasses.replace(case, layout=layout), 4, device)
        with torch.no_grad():
            values = getattr(inputs, where)
            (values if values.dim() == 1 else values[0, :, 1, 2])[1] = torch.nan
        for name, result in run_abn(inputs, backend).items():
            channel = 0 if result.dim() == 1 else 1
            found = (
                result.isnan().transpose(0, channel).flatten(1).any(1)
                if result.dim() > 1
                else (result.isnan())
            )
            assert not found[[0, 2, 3]].any(), name
            if name == "grad_x":
                assert result[:, 1].isnan().all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("slope", [0.0, -0.5, torch.nan, torch.inf])
def test_a_slope_without_an_inverse_makes_its_channel_nan(
    backend: str, device: str, slope: float, training: bool
) -> None:
    """In everything that there is of it, whatever the signs of its numbers."""
    for layout in ("nchw", "channels_last"):
        case = ABNCase((2, 4, 3, 5), layout=layout, activation="prelu", param=0.2)
        inputs = make_abn_inputs(
            dataclasses.replace(case, residual=True, training=training), 4, device
        )
        with torch.no_grad():
            inputs.slope[1] = slope
        for name, result in run_abn(inputs, backend).items():
            if name.startswith("running"):
                continue
            channels = result[:, None] if result.dim() == 1 else result.movedim(1, 0).flatten(1)
            assert channels.isnan().all(1).tolist() == [False, True, False, False], name
            assert channels[[0, 2, 3]].isfinite().all(), name


def test_the_least_slope_has_finite_gradients(backend: str, device: str) -> None:
    """Where the inverse of the slope is infinite, what is stored as -0 is taken for 0."""
    slopes = torch.full((3,), 1e-42, device=device)
    leaves = [torch.randn(4, 3, 5, device=device, requires_grad=True), slopes.requires_grad_()]
    out = inplace_abn(leaves[0], activation="prelu", activation_param=leaves[1], backend=backend)
    for grad in torch.autograd.grad(out.sum(), leaves):
        assert grad.isfinite().all()


def test_runs_repeat_bit_for_bit(backend: str, device: str, dtypes, small: bool) -> None:
    shape, repeats = ((2, 5, 9, 13), 2) if small else ((6, 37, 41, 29), 20)
    for dtype in dtypes:
        for layout in ("nchw", "channels_last"):
            inputs = make_abn_inputs(ABNCase(shape, dtype, layout, residual=True), 3, device)
            first = run_abn(inputs, backend)
            for _ in range(repeats):
                again = run_abn(inputs, backend)
                for name, tensor in first.items():
                    assert torch.equal(tensor, again[name]), f"{name} differs between runs"


def test_in_place_is_the_same_bits(backend: str, device: str, dtypes) -> None:
    for dtype in dtypes:
        for layout in ("nchw", "channels_last"):
            inputs = make_abn_inputs(ABNCase((2, 6, 7, 5), dtype, layout, residual=True), 1, device)
            pure, over = run_abn(inputs, backend), run_abn(inputs, backend, inplace=True)
            for name, tensor in pure.items():
                assert torch.equal(tensor, over[name]), name


@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "slope", "residual"])
@pytest.mark.parametrize("training", [True, False])
def test_only_wanted_gradients(
    backend: str, device: str, dtypes, wanted: str, training: bool
) -> None:
    for layout in ("nchw", "channels_last"):
        case = ABNCase(
            (2, 6, 7, 5), dtypes[0], layout, activation="prelu", param=0.2, residual=True,
            training=training,
        )  # fmt: skip
        inputs = make_abn_inputs(case, 6, device)
        full = run_abn(inputs, backend)[f"grad_{wanted}"]
        for name, leaf in inputs.leaves().items():
            leaf.requires_grad_(name == wanted)
        out = inplace_abn(
            inputs.x, inputs.weight, inputs.bias, inputs.running_mean, inputs.running_var, training,
            activation="prelu", activation_param=inputs.slope, residual=inputs.residual,
            backend=backend,
        )  # fmt: skip
        (grad,) = torch.autograd.grad(out, inputs.leaves()[wanted], inputs.grad_out)
        torch.testing.assert_close(grad, full, rtol=1e-5, atol=1e-5)


def test_empty_batch_out_of_training(backend: str, device: str) -> None:
    x = torch.randn(0, 3, 4, 4, device=device, requires_grad=True)
    weight = torch.ones(3, device=device, requires_grad=True)
    out = inplace_abn(
        x, weight, None, torch.zeros(3, device=device), torch.ones(3, device=device), False,
        backend=backend,
    )  # fmt: skip
    grads = torch.autograd.grad(out.sum(), (x, weight))
    assert out.shape == grads[0].shape == x.shape
    assert not grads[1].any()


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4), (2, 3, 2, 3), (2, 2, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("activation", "param"), ACTIVATIONS)
def test_gradcheck(
    backend: str, device: str, dtypes, shape, training: bool, affine: bool, activation: str,
    param: float, small: bool,
) -> None:  # fmt: skip
    if torch.float64 not in dtypes:
        pytest.skip(f"{backend} has no float64")
    # The fast mode projects the Jacobian on random directions instead of running once per element.
    gradcheck = functools.partial(torch.autograd.gradcheck, fast_mode=small)
    case = ABNCase(
        shape, torch.float64, "channels_last" if len(shape) == 4 else "nchw",
        activation=activation, param=param, affine=affine, training=training,
        residual=len(shape) == 3,
    )  # fmt: skip
    inputs = make_abn_inputs(case, 11, device)
    leaves = inputs.leaves()

    def call(*values: torch.Tensor) -> torch.Tensor:
        named = dict(zip(leaves, values, strict=True))
        return inplace_abn(
            named["x"], named.get("weight"), named.get("bias"), inputs.running_mean.clone(),
            inputs.running_var.clone(), training, 0.1, EPS, activation,
            named.get("slope", param), residual=named.get("residual"), backend=backend,
        )  # fmt: skip

    assert gradcheck(call, tuple(leaves.values()))


def test_explain_names_every_back_end() -> None:
    text = str(explain(inplace_abn, torch.randn(2, 3, 4, 4)))
    for name in ("cpu", "cuda", "triton", "reference"):
        assert name in text
