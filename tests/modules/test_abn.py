# SPDX-License-Identifier: MIT
"""ABN against torch's batch norm and activations, its state, and its refusals."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ocnet.modules import (
    ABN,
    ACT_ELU,
    ACT_LEAKY_RELU,
    ACT_NONE,
    ACT_RELU,
    InPlaceABN,
    InPlaceABNSync,
)

ACTIVATIONS = {
    "leaky_relu": nn.LeakyReLU(0.3),
    "elu": nn.ELU(0.3),
    "relu": nn.ReLU(),
    "identity": nn.Identity(),
    "none": nn.Identity(),
}
SHAPES = {2: (6, 4), 3: (3, 4, 5), 4: (3, 4, 5, 7), 5: (2, 4, 3, 2, 5)}


NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def randomised(layer: ABN) -> ABN:
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return layer


def step(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(torch.linspace(-1, 1, y.numel()).reshape(y.shape))
    return [y.detach(), x.grad]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_is_batch_norm_then_activation(activation: str, rank: int, training: bool) -> None:
    layer = randomised(ABN(4, activation=activation, activation_param=0.3)).train(training)
    norm = NORMS[rank](4)
    norm.load_state_dict(layer.state_dict(), strict=True)
    plain = nn.Sequential(norm, ACTIVATIONS[activation]).train(training)
    x = torch.randn(SHAPES[rank])
    got = [*step(layer, x), layer.weight.grad, layer.bias.grad]
    want = [*step(plain, x), norm.weight.grad, norm.bias.grad]
    # In place, ELU's slope is read from its output: another rounding of each term that is summed.
    terms = x.numel() // 4 if activation == "elu" else 0
    for mine, plains in zip(got, want, strict=True):
        bound = terms * torch.finfo(torch.float32).eps * float(plains.abs().max())
        torch.testing.assert_close(mine, plains, rtol=0, atol=bound)
    assert torch.equal(layer.running_mean, norm.running_mean)
    assert torch.equal(layer.running_var, norm.running_var)


def test_momentum_is_the_weight_of_the_batch() -> None:
    layer = ABN(1, momentum=0.25).double()
    x = torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64)
    layer(x)
    assert layer.running_mean.item() == 0.25 * 3
    assert layer.running_var.item() == 0.75 + 0.25 * 7


def test_keeps_two_maps_for_backward() -> None:
    layer, x = ABN(4), torch.randn(2, 4, 8, 8, requires_grad=True)
    kept = set()

    def pack(tensor: Tensor) -> Tensor:
        if tensor.numel() == x.numel():
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    assert kept == {x.untyped_storage().data_ptr(), y.untyped_storage().data_ptr()}


def test_attributes_are_read_in_the_call() -> None:
    layer, x = ABN(3), torch.randn(4, 3, 2, 2)
    layer.activation = "identity"
    assert torch.equal(layer(x), nn.BatchNorm2d(3)(x))
    layer.eps = 0.5
    assert torch.equal(layer(x), nn.BatchNorm2d(3, eps=0.5)(x))
    layer.reset_running_stats()
    layer.momentum = 1.0
    layer(x)
    norm = nn.BatchNorm2d(3, momentum=1.0)
    norm(x)
    assert torch.equal(layer.running_mean, norm.running_mean)
    layer.activation, layer.activation_param = "leaky_relu", 0.0
    assert layer(x).min() == 0


def test_state_keys() -> None:
    running = ["running_mean", "running_var", "num_batches_tracked"]
    assert list(ABN(3).state_dict()) == ["weight", "bias", *running]
    assert list(ABN(3).state_dict()) == list(nn.BatchNorm2d(3).state_dict())
    assert list(ABN(3, affine=False).state_dict()) == running
    assert list(ABN(3, track_running_stats=False).state_dict()) == ["weight", "bias"]
    assert list(ABN(3, affine=False, track_running_stats=False).state_dict()) == []
    assert list(ABN(3, count_batches=False).state_dict()) == [
        "weight", "bias", "running_mean", "running_var",
    ]  # fmt: skip


def test_a_state_without_the_counter_counts_from_0() -> None:
    layer = ABN(3)
    layer(torch.randn(2, 3, 4))
    state = {n: v for n, v in layer.state_dict().items() if n != "num_batches_tracked"}
    layer.load_state_dict(state)
    assert layer.num_batches_tracked.item() == 0


def test_the_counter_is_moved_and_not_replaced() -> None:
    layer = ABN(3)
    before = layer.num_batches_tracked
    for _ in range(3):
        layer(torch.randn(2, 3, 4))
    layer.eval()(torch.randn(2, 3, 4))
    assert layer.num_batches_tracked is before
    assert before.item() == 3


def test_momentum_of_none_is_the_average_of_all_batches() -> None:
    layer, norm = ABN(3, momentum=None, activation="identity"), nn.BatchNorm1d(3, momentum=None)
    for _ in range(3):
        x = torch.randn(5, 3, 4)
        torch.testing.assert_close(layer(x), norm(x))
    torch.testing.assert_close(layer.running_mean, norm.running_mean)
    torch.testing.assert_close(layer.running_var, norm.running_var)


def test_without_running_statistics_evaluation_takes_its_batch() -> None:
    layer, x = ABN(3, track_running_stats=False, activation="identity").eval(), torch.randn(4, 3, 5)
    assert torch.equal(layer(x), nn.BatchNorm1d(3, track_running_stats=False).eval()(x))


@pytest.mark.parametrize("narrow", ["half", "bfloat16"])
def test_narrow_layers_keep_wide_statistics(narrow: str) -> None:
    layer = randomised(ABN(4))
    mean = layer.running_mean.clone()
    getattr(layer, narrow)()
    assert layer.weight.dtype.itemsize == 2
    assert layer.running_mean.dtype == torch.float32
    assert torch.equal(layer.running_mean, mean)
    x = torch.randn(3, 4, 5).to(layer.weight.dtype)
    assert layer(x).dtype == layer.eval()(x).dtype == x.dtype
    assert layer.double().running_mean.dtype == torch.float64


def test_spellings_of_old_versions() -> None:
    layer = ABN(2, slope=0.2, activation=ACT_LEAKY_RELU)
    assert layer.activation_param == 0.2
    assert (ACT_ELU, ACT_RELU, ACT_NONE) == ("elu", "relu", "none")


def test_frozen_layers_do_not_learn_or_move() -> None:
    layer = randomised(ABN(3)).freeze().train()
    x = torch.randn(4, 3, 5, requires_grad=True)
    before = layer.running_mean.clone()
    want = copy.deepcopy(layer).eval()(x)
    assert torch.equal(layer(x), want)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert torch.equal(layer.running_mean, before)
    layer.unfreeze()(x)
    assert not torch.equal(layer.running_mean, before)
    with pytest.raises(ValueError, match="ABN: track_running_stats must be true to freeze"):
        ABN(3, track_running_stats=False).freeze()


def test_checkpointing_moves_the_statistics_once() -> None:
    layer, x = ABN(3), torch.randn(4, 3, 5, requires_grad=True)
    checkpoint(lambda x: layer(x * 2) * 3, x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(layer.running_mean, 0.2 * x.detach().mean((0, 2)))


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "inside"])
def test_loads_the_state_of_batch_norm(inside: bool) -> None:
    norm, layer = nn.BatchNorm2d(3), ABN(3)
    norm(torch.randn(2, 3, 4, 4))
    source, target = (nn.Sequential(norm), nn.Sequential(layer)) if inside else (norm, layer)
    state = source.state_dict()
    names = list(state)
    target.load_state_dict(state)
    assert torch.equal(layer.running_mean, norm.running_mean)
    assert list(state) == names


def test_without_affine() -> None:
    x = torch.randn(3, 4, 5, 5)
    layer = ABN(4, affine=False, activation="identity")
    assert torch.equal(layer(x), nn.BatchNorm2d(4, affine=False)(x))
    assert list(layer.parameters()) == []


def test_statistics_stay_wide_under_autocast() -> None:
    layer, x = ABN(4), torch.randn(2, 4, 5, 5, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert layer.running_mean.dtype == torch.float32
    want = 0.1 * x.double().mean((0, 2, 3))
    torch.testing.assert_close(layer.running_mean.double(), want, rtol=1e-5, atol=1e-7)


def test_repr_names_activation_and_parameter() -> None:
    assert repr(ABN(8)) == (
        "ABN(8, eps=1e-05, momentum=0.1, affine=True, activation=leaky_relu[0.01])"
    )
    assert "activation=identity" in repr(ABN(8, activation="identity"))
    assert "[" not in repr(ABN(8, activation="relu"))


def test_order_of_the_constructor() -> None:
    for kind in (ABN, InPlaceABN, InPlaceABNSync):
        layer = kind(2, 1e-3, 0.2, False, False, "elu", 0.5)
        got = (layer.num_features, layer.eps, layer.momentum, layer.affine)
        rest = (layer.track_running_stats, layer.activation, layer.activation_param)
        assert (*got, *rest) == (2, 1e-3, 0.2, False, False, "elu", 0.5)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (0, 3, 4, 4)], ids=["one", "none"])
def test_too_few_values_are_refused_in_training_only(shape: tuple[int, ...]) -> None:
    layer, x = ABN(3), torch.ones(shape)
    before = layer.running_var.clone()
    with pytest.raises(ValueError, match="ABN: x must have more than one value per channel"):
        layer(x)
    assert torch.equal(layer.running_var, before)
    assert layer.eval()(x).shape == shape


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (3,)], ids=["channels", "rank"])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"ABN: x must have shape \(N, 3, ...\), got"):
        ABN(3)(torch.ones(shape))


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ABN: activation must be one of .* got 'gelu'"):
        ABN(3, activation="gelu")
    layer = ABN(3)
    layer.activation = "gelu"
    with pytest.raises(ValueError, match="got 'gelu'"):
        layer(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"ABN: activation_param must be at least 0, got -0\.1"):
        ABN(3, activation_param=-0.1)
