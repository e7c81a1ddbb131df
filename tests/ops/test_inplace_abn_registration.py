# SPDX-License-Identifier: MIT
"""In-place ABN as torch sees it, and bad input: one sentence each, in the project's form."""

import pytest
import torch
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from ocnet.ops import explain, inplace_abn
from ocnet.ops.inplace_abn.steps import BACKENDS
from ocnet.ops.inplace_abn.surroundings import NEW, OVER_INPUT, destination
from ocnet.testing.abn import ABNCase, make_abn_inputs
from tests.ops.tracing import assert_same_compiled, assert_same_exported

OPS = torch.ops.ocnet
POINTWISE = (1e-5, "leaky_relu", 0.01, False)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "cropped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_opcheck(
    backend: str, device: str, layout: str, dtype: torch.dtype, training: bool
) -> None:
    case = ABNCase((2, 6, 4, 5), dtype, layout, residual=True, training=training)
    p = make_abn_inputs(case, 1, device)
    vectors = (p.weight, p.bias, None)
    rest = (training, 0.1, 1e-5, *POINTWISE, backend)
    moved = (p.running_mean, p.running_var)
    opcheck(OPS.inplace_abn_fwd.default, (p.x, p.residual, *vectors, None, *moved, *rest))
    with torch.no_grad():
        out, _, var, *_ = OPS.inplace_abn_fwd(p.x, p.residual, *vectors, None, *moved, *rest)
        maps = (out, p.residual, p.grad_out, *(v if v is None else v.detach() for v in vectors))
        used = var if training else p.running_var
        for needed in ([True] * 4 + [False], [False, True, False, False, False]):
            opcheck(
                OPS.inplace_abn_bwd.default,
                (*maps, used, training, 1e-5, *POINTWISE, backend, needed),
            )


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_opcheck_of_the_steps(backend: str, device: str, layout: str) -> None:
    p = make_abn_inputs(ABNCase((2, 6, 4, 5), layout=layout), 1, device)
    with torch.no_grad():
        opcheck(OPS.inplace_abn_stats.default, (p.x, backend))
        packed = OPS.inplace_abn_stats(p.x, backend).view(1, -1)
        head = (None, p.weight.detach(), p.bias.detach(), None)
        rest = (packed, None, None, True, 0.1, 1e-5, *POINTWISE, backend)
        opcheck(OPS.inplace_abn_fwd_.default, (p.x.detach().clone(), *head, *rest))
        out, _, var, *_ = OPS.inplace_abn_fwd(p.x, *head, *rest)
        maps = (out, None, p.grad_out, *head[1:])
        count = torch.full((1,), 40.0, device=device)
        opcheck(
            OPS.inplace_abn_bwd_reduce.default,
            (*maps, count, *POINTWISE, backend, [True, True, False]),
        )
        sums = OPS.inplace_abn_bwd_reduce(*maps, count, *POINTWISE, backend, [True, True, False])[0]
        opcheck(
            OPS.inplace_abn_bwd_apply.default,
            (*maps, var, sums, count, 1e-5, *POINTWISE, backend, [True, False]),
        )


@pytest.mark.parametrize("dynamic", [True, False])
def test_compile_fullgraph(backend: str, device: str, dynamic: bool) -> None:
    weight, bias = torch.rand(6, device=device) + 0.5, torch.rand(6, device=device)

    def step(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return inplace_abn(x.sin(), weight, bias, backend=backend).square().mean()

    calls = []
    for size in ((4, 5), (7, 3), (6, 6)):
        x = torch.randn(2, 6, *size, device=device)
        calls.append([t.clone().requires_grad_() for t in (x, weight, bias)])
    assert_same_compiled(step, dynamic, calls)


def test_export_with_dynamic_size() -> None:
    moved = torch.zeros(4), torch.ones(4)
    weight = torch.rand(4) + 0.5
    for inplace in (False, True):
        assert_same_exported(
            lambda maps, inplace=inplace: inplace_abn(
                maps * 2, weight, None, *moved, False, inplace=inplace
            )
        )


def test_shapes_without_data() -> None:
    x = torch.empty(2, 8, 5, 6, device="meta")
    assert inplace_abn(x, torch.empty(8, device="meta"), None).shape == x.shape


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_checkpoint(inplace: bool, reentrant: bool) -> None:
    p = make_abn_inputs(ABNCase((2, 5, 4, 6)))

    def block(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y = inplace_abn(x * 2, weight, p.bias, inplace=inplace)
        return inplace_abn(y * 3, weight, p.bias, inplace=inplace) + y

    leaves = (p.x, p.weight)
    want = torch.autograd.grad(block(*leaves), leaves, p.grad_out)
    (checkpoint(block, *leaves, use_reentrant=reentrant) * p.grad_out).sum().backward()
    torch.testing.assert_close([leaf.grad for leaf in leaves], list(want), rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputing_does_not_move_the_statistics_again(reentrant: bool) -> None:
    x = torch.randn(4, 3, 5, requires_grad=True)
    moved = torch.zeros(3), torch.ones(3)

    def block(x: torch.Tensor) -> torch.Tensor:
        return inplace_abn(inplace_abn(x * 2, None, None, *moved) * 3)

    checkpoint(block, x, use_reentrant=reentrant).sum().backward()
    torch.testing.assert_close(moved[0], 0.1 * (2 * x).mean((0, 2)).detach())


def test_autocast_leaves_the_map_as_it_is() -> None:
    p = make_abn_inputs(ABNCase((2, 5, 4, 6), torch.bfloat16, residual=True))
    with torch.autocast("cpu", torch.bfloat16):
        out = inplace_abn(p.x, p.weight, p.bias, residual=p.residual.float())
        wide = inplace_abn(p.x.float(), p.weight, p.bias)
    assert out.dtype == torch.bfloat16
    assert wide.dtype == torch.float32
    assert torch.equal(out, inplace_abn(p.x, p.weight, p.bias, residual=p.residual))
    out.float().sum().backward()
    assert p.weight.grad.dtype == torch.float32


def test_second_order_is_refused_in_words() -> None:
    x = torch.randn(3, 2, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(inplace_abn(x).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="inplace_abn: gradients must be of first order"):
        grad.sum().backward()


def test_function_transforms() -> None:
    x, weight = torch.randn(3, 2, 4), torch.rand(2) + 0.5

    def number(x: torch.Tensor, weight: torch.Tensor, inplace: bool) -> torch.Tensor:
        return inplace_abn(x * 2, weight, inplace=inplace).square().sum()

    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    want = torch.autograd.grad(number(*leaves, False), leaves)
    for inplace in (False, True):
        got = torch.func.grad(number, argnums=(0, 1))(x, weight, inplace)
        torch.testing.assert_close(got, want)


def test_retaining_the_graph_gives_the_same_gradients_again() -> None:
    p = make_abn_inputs(ABNCase())
    out = inplace_abn(p.x * 1, p.weight, p.bias, inplace=True)
    first = torch.autograd.grad(out, p.x, p.grad_out, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(out, p.x, p.grad_out)[0])


def test_an_expanded_gradient_is_not_written_into() -> None:
    """Of a plain sum: the gradient is one number, seen everywhere."""
    p = make_abn_inputs(ABNCase())
    pure = torch.autograd.grad(inplace_abn(p.x, p.weight, p.bias).sum(), p.x)
    over = torch.autograd.grad(inplace_abn(p.x * 1, p.weight, p.bias, inplace=True).sum(), p.x)
    want = torch.autograd.grad(inplace_abn(p.x, p.weight, p.bias), p.x, torch.ones_like(p.x))
    assert torch.equal(pure[0], want[0])
    assert torch.equal(over[0], want[0])


def test_a_shared_gradient_is_not_written_into() -> None:
    """Both terms of a sum get the same tensor."""
    p = make_abn_inputs(ABNCase())
    x = p.x.detach().requires_grad_()
    branch = x * 1
    out = inplace_abn(branch * 1, p.weight, p.bias, inplace=True) + branch
    (got,) = torch.autograd.grad(out, x, p.grad_out)
    (own,) = torch.autograd.grad(inplace_abn(x, p.weight, p.bias), x, p.grad_out)
    torch.testing.assert_close(got, own + p.grad_out)


def maps(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


GOOD = (2, 4, 3, 5)
FOUR = torch.ones(4)
CASES = {
    "rank": ((maps(4),), {}, ValueError, r"x must have shape \(N, C, ...\)"),
    "no channel": ((maps(2, 0, 3),), {}, ValueError, "at least one channel"),
    "integers": ((maps(*GOOD, dtype=torch.int64),), {}, TypeError, "got int64"),
    "not a tensor": (([1.0],), {}, TypeError, "x must be a tensor, got list"),
    "weight": ((maps(*GOOD), torch.ones(3)), {}, ValueError, r"weight must have shape \(4,\)"),
    "bias": (
        (maps(*GOOD), FOUR, torch.ones(4, dtype=torch.int32)), {}, TypeError,
        "bias must be floating, got int32",
    ),
    "device": (
        (maps(*GOOD), torch.ones(4, device="meta")), {}, ValueError, "weight must have the device",
    ),
    "one statistic": (
        (maps(*GOOD), FOUR, FOUR, FOUR, None), {}, ValueError, "both or neither, got one",
    ),
    "no statistics": (
        (maps(*GOOD), FOUR, FOUR, None, None, False), {}, ValueError, "where training is false",
    ),
    "one number": ((maps(1, 4, 1, 1),), {}, ValueError, "more than one number per channel"),
    "empty": ((maps(0, 4, 3),), {}, ValueError, "more than one number per channel"),
    "activation": ((maps(*GOOD),), {"activation": "mish"}, ValueError, "must be one of leaky_relu"),
    "relu": ((maps(*GOOD),), {"activation": "relu"}, ValueError, "must have an inverse"),
    "slope": ((maps(*GOOD),), {"activation_param": 0.0}, ValueError, "above 0 and finite for leaky"),
    "negative": ((maps(*GOOD),), {"activation_param": -0.1}, ValueError, "got -0.1"),
    "elu": (
        (maps(*GOOD),), {"activation": "elu", "activation_param": 0}, ValueError, "finite for elu",
    ),
    "prelu": ((maps(*GOOD),), {"activation": "prelu"}, TypeError, "a tensor of slopes for prelu"),
    "slopes": (
        (maps(*GOOD),), {"activation": "prelu", "activation_param": torch.ones(2)}, ValueError,
        r"activation_param must have shape \(4,\)",
    ),
    "mode": ((maps(*GOOD),), {"scale_mode": "abs"}, ValueError, "one of abs_eps, signed"),
    "eps": ((maps(*GOOD),), {"eps": 0.0}, ValueError, "eps must be above 0"),
    "scale_eps": ((maps(*GOOD),), {"scale_eps": -1.0}, ValueError, "scale_eps must be above 0"),
    "momentum": ((maps(*GOOD),), {"momentum": "0.1"}, TypeError, "momentum must be a number"),
    "residual": (
        (maps(*GOOD),), {"residual": maps(2, 4, 3, 4)}, ValueError,
        r"residual must have the shape of x, \(2, 4, 3, 5\), got",
    ),
    "residual dtype": (
        (maps(*GOOD),), {"residual": maps(*GOOD, dtype=torch.float64)}, TypeError,
        "residual must have the dtype of x",
    ),
    "back end": ((maps(*GOOD),), {"backend": "fast"}, ValueError, "backend must be one of 'auto'"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_and_nothing_is_written(name: str) -> None:
    arguments, options, error, text = CASES[name]
    before = [a.clone() for a in arguments if isinstance(a, torch.Tensor)]
    with pytest.raises(error, match=text) as caught:
        inplace_abn(*arguments, **{"inplace": True, **options})
    assert str(caught.value).startswith("inplace_abn: ")
    assert " must " in str(caught.value)
    assert ", got " in str(caught.value)
    after = [a for a in arguments if isinstance(a, torch.Tensor)]
    for old, new in zip(before, after, strict=True):
        assert old.device.type == "meta" or torch.equal(old, new)


def test_explain_says_what_was_chosen_and_why() -> None:
    told = explain(inplace_abn, maps(2, 4, 15), backend="reference")
    assert told.chosen == "reference"
    assert tuple(told.reasons) == BACKENDS.names
    assert "CUDA tensors" in told.reasons["cuda"]


def conv(seed: int = 0) -> tuple[torch.nn.Conv2d, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.nn.Conv2d(4, 4, 3, padding=1), torch.randn(2, 4, 6, 6)


def test_the_input_is_overwritten_where_nobody_can_tell() -> None:
    layer, x = conv()
    h = layer(x)
    address = h.data_ptr()
    out = inplace_abn(h, inplace=True)
    assert out.data_ptr() == address


@pytest.mark.parametrize(
    "use",
    [
        lambda h, y: y + h,
        lambda h, y: h.sum(),
        lambda h, y: torch.cat([y, h]),
        lambda h, y: h.shape,
    ],
    ids=["add", "sum", "cat", "shape"],
)
def test_an_overwritten_input_cannot_be_used(use) -> None:
    layer, x = conv()
    h = layer(x)
    y = inplace_abn(h, inplace=True)
    with pytest.raises(RuntimeError, match="inplace_abn: x must not be used after a call with"):
        use(h, y)


def test_a_tensor_that_was_kept_before_is_an_error_in_backward() -> None:
    layer, x = conv()
    second, _ = conv(1)
    h = layer(x)
    other = second(h)
    y = inplace_abn(h, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (other.sum() + y.sum()).backward()


@pytest.mark.parametrize("follower", ["relu_", "leaky_relu_", "add_"])
def test_a_result_that_is_changed_is_an_error_in_backward(follower: str) -> None:
    layer, x = conv()
    y = inplace_abn(layer(x), inplace=True)
    if follower == "add_":
        y.add_(1)
    else:
        getattr(torch.nn.functional, follower)(y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


SHARED = {
    "leaf": lambda h: h.detach().requires_grad_(),
    "parameter": lambda h: torch.nn.Parameter(h.detach()),
    "view": lambda h: h[:, :, 1:],
    "kept by the layer before": torch.relu,
    "expanded": lambda h: h[:1].expand(2, -1, -1, -1),
    "alias": lambda h: h.detach(),
}


@pytest.mark.parametrize("name", SHARED)
def test_what_others_may_read_is_not_overwritten(name: str) -> None:
    layer, images = conv()
    h = layer(images)
    x = SHARED[name](h)
    before = x.detach().clone()
    assert destination(x, True, True) == NEW
    got = inplace_abn(x, inplace=True)
    assert torch.equal(x, before)
    assert torch.equal(got, inplace_abn(x))
    if x.requires_grad:
        got.square().sum().backward()


def test_under_hooks_that_keep_tensors_nothing_is_overwritten() -> None:
    layer, x = conv()
    h = layer(x)
    assert destination(h, True, True) == OVER_INPUT
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        assert destination(h, True, True) == NEW


@pytest.mark.parametrize("inplace", [False, True])
def test_out_of_grad_mode(inplace: bool) -> None:
    layer, x = conv()
    want = inplace_abn(layer(x))
    with torch.no_grad():
        assert torch.equal(inplace_abn(layer(x), inplace=inplace), want)
    with torch.inference_mode():
        assert torch.equal(inplace_abn(layer(x), inplace=inplace), want)


def test_deepcopy_and_nothing_saved_but_the_output() -> None:
    layer, x = conv()
    kept: list[torch.Tensor] = []
    weight = torch.rand(4, requires_grad=True)
    h = layer(x)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = inplace_abn(h, weight)
    large = [t for t in kept if t.numel() > 4]
    assert [t.data_ptr() for t in large] == [out.data_ptr()]
