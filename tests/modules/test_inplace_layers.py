# SPDX-License-Identifier: MIT
"""The in-place layers: what they compute, their options, and what they keep."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ocnet.modules import ABN, InPlaceABN, InPlaceABNSync, freeze_norms
from ocnet.ops.inplace_abn.reference import naive_inplace_abn


def randomised(layer: ABN) -> ABN:
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return layer


@pytest.mark.parametrize("kind", [InPlaceABN, InPlaceABNSync])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5), (3, 4, 5, 7), (2, 4, 3, 2, 5)], ids=len)
@pytest.mark.parametrize("activation", ["leaky_relu", "elu", "identity", "none"])
def test_is_the_plain_formula(
    kind, activation: str, shape: tuple[int, ...], training: bool
) -> None:
    layer = randomised(kind(4, activation=activation, activation_param=0.3)).double()
    layer.train(training)
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    want = naive_inplace_abn(
        x,
        layer.weight,
        layer.bias,
        mean,
        var,
        training,
        activation=activation,
        activation_param=0.3,
    )
    got = layer(x)
    grad_out = torch.randn_like(x)
    leaves = (x, layer.weight, layer.bias)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        torch.autograd.grad(got, leaves, grad_out), torch.autograd.grad(want, leaves, grad_out)
    )
    torch.testing.assert_close((layer.running_mean, layer.running_var), (mean, var))
    assert layer.num_batches_tracked.item() == int(training)


def test_plain_and_in_place_differ_where_weights_are_negative() -> None:
    plain = ABN(2, activation="identity")
    inplace = InPlaceABN(2, activation="identity")
    with torch.no_grad():
        plain.weight.copy_(torch.tensor([0.5, -0.5]))
    inplace.load_state_dict(plain.state_dict())
    x = torch.randn(4, 2, 3)
    one, other = plain(x), inplace(x)
    torch.testing.assert_close(one[:, 0], other[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one[:, 1], -other[:, 1], rtol=1e-4, atol=1e-4)
    inplace.scale_mode = "signed"
    torch.testing.assert_close(one, inplace(x), rtol=1e-4, atol=1e-4)


def test_all_are_abn_with_the_same_state() -> None:
    keys = list(ABN(3).state_dict())
    for kind in (InPlaceABN, InPlaceABNSync):
        assert isinstance(kind(3), ABN)
        assert list(kind(3).state_dict()) == keys
        assert repr(kind(3)).startswith(
            f"{kind.__name__}(3, eps=1e-05, momentum=0.1, affine=True, activation=leaky_relu[0.01]"
        )


def test_attributes_are_read_in_the_call() -> None:
    layer, x = InPlaceABN(3), torch.randn(4, 3, 2, 2)
    layer.activation = "identity"
    torch.testing.assert_close(layer(x), naive_inplace_abn(x, layer.weight, activation="identity"))
    layer.activation, layer.activation_param = "elu", 0.5
    wanted = naive_inplace_abn(x, layer.weight, activation="elu", activation_param=0.5)
    torch.testing.assert_close(layer(x), wanted)


def test_momentum_of_none_is_the_average_of_all_batches() -> None:
    layer, norm = InPlaceABN(3, momentum=None), nn.BatchNorm1d(3, momentum=None)
    for _ in range(3):
        x = torch.randn(5, 3, 4)
        layer(x)
        norm(x)
    torch.testing.assert_close(layer.running_mean, norm.running_mean)
    torch.testing.assert_close(layer.running_var, norm.running_var)


def test_slopes_that_are_learned() -> None:
    layer = InPlaceABN(3, activation="prelu", activation_param=0.25)
    assert "slope" in layer.state_dict()
    x = torch.randn(4, 3, 5)
    layer(x).sum().backward()
    assert layer.slope.grad.abs().min() > 0
    with torch.no_grad():
        layer.slope.fill_(-1.0)
    assert layer(x).isfinite().all()
    other = InPlaceABN(3)
    other.activation = "prelu"
    with pytest.raises(ValueError, match="activation must be given to the constructor"):
        other(x)


def test_relu_only_where_statistics_are_frozen() -> None:
    layer, x = InPlaceABN(3, activation="relu"), torch.randn(4, 3, 5)
    with pytest.raises(ValueError, match="activation must have an inverse"):
        layer(x)
    assert layer.eval()(x).min() == 0
    assert layer.train().freeze()(x).min() == 0


def test_a_refused_call_counts_no_batch() -> None:
    layer = InPlaceABN(3, activation="relu")
    with pytest.raises(ValueError, match="activation must"):
        layer(torch.randn(4, 3, 5))
    assert layer.num_batches_tracked.item() == 0


def test_freezing_a_network() -> None:
    net = nn.Sequential(nn.Conv1d(3, 3, 1), InPlaceABN(3), nn.Conv1d(3, 2, 1), ABN(2)).train()
    freeze_norms(net)
    x = torch.randn(4, 3, 5)
    before = copy.deepcopy(net.state_dict())
    net(x).sum().backward()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert net[1].weight.grad is None
    assert net[0].weight.grad is not None


def kept_numbers(layer: nn.Module) -> int:
    conv = [nn.Conv2d(4, 4, 1) for _ in range(2)]
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.dim() == 4 and t.shape[-1] > 1:
            storages[t.untyped_storage().data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = conv[1](layer(conv[0](torch.randn(2, 4, 8, 8))))
    assert out.requires_grad
    return sum(storages.values()) // (2 * 4 * 8 * 8)


def test_between_convolutions_a_map_less_is_kept() -> None:
    # The image, and between the convolutions what the second keeps; batch norm keeps its input too.
    assert kept_numbers(InPlaceABN(4)) == 2
    assert kept_numbers(ABN(4)) == 3


def test_overwriting() -> None:
    conv, layer = nn.Conv2d(3, 3, 1), InPlaceABN(3, inplace=True)
    h = conv(torch.randn(2, 3, 4, 4))
    address = h.data_ptr()
    assert layer(h).data_ptr() == address
    with pytest.raises(RuntimeError, match="x must not be used after"):
        h.sum()


def test_copies() -> None:
    layer = InPlaceABNSync(3, group=object())
    assert copy.deepcopy(layer).group is layer.group
    layer.set_group(None)
    assert layer.group is None


@pytest.mark.parametrize("narrow", ["half", "bfloat16"])
def test_narrow_layers(narrow: str) -> None:
    layer = getattr(InPlaceABN(4), narrow)()
    x = torch.randn(3, 4, 5).to(layer.weight.dtype).requires_grad_()
    layer(x).float().sum().backward()
    assert layer.running_mean.dtype == torch.float32
    assert layer.weight.grad.dtype == x.grad.dtype == x.dtype
    assert layer.eval()(x).dtype == x.dtype


@pytest.mark.parametrize("kind", [InPlaceABN, InPlaceABNSync])
def test_other_shapes_are_refused(kind) -> None:
    with pytest.raises(ValueError, match=r"x must have shape \(N, 3, ...\), got"):
        kind(3)(torch.ones(2, 4, 3))
    with pytest.raises(ValueError, match=r"more than one (value|number) per channel"):
        kind(3)(torch.ones(1, 3, 1, 1))
