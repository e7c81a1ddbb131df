# SPDX-License-Identifier: MIT
"""Between plain and in-place norms, and into convolutions: the function stays the same."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ocnet.modules import (
    ABN,
    InPlaceABN,
    InPlaceABNSync,
    convert_batchnorm,
    convert_conv_bn,
    from_batchnorm,
    norm_layer,
    norm_names,
    to_batchnorm,
    to_deploy,
)
from tests.models.slim import STRUCTURES, slim


def trained(norm: nn.Module, least: float = 0.1) -> nn.Module:
    """Return the norm in double with weights of both signs, none nearer to 0 than told."""
    c = norm.num_features
    with torch.no_grad():
        if norm.weight is not None:
            sign = torch.where(torch.arange(c) % 3 == 1, -1.0, 1.0)
            norm.weight.copy_(sign * (least + torch.rand(c)))
            norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return norm.double()


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_from_batchnorm_and_back(affine: bool, training: bool) -> None:
    norm = trained(nn.BatchNorm2d(5, affine=affine)).train(training)
    layer = from_batchnorm(norm)
    assert isinstance(layer, InPlaceABN)
    again = to_batchnorm(layer)
    x = torch.randn(3, 5, 4, 4, dtype=torch.float64)
    want = copy.deepcopy(norm)(x)
    close(layer(x), want)
    close(again(x), want)
    assert layer.training == again[0].training == training


@pytest.mark.parametrize("activation", ["leaky_relu", "elu", "identity", "prelu", "relu"])
@pytest.mark.parametrize("kind", [ABN, InPlaceABN])
def test_to_batchnorm_activates(kind, activation: str) -> None:
    if (kind, activation) == (ABN, "prelu"):
        pytest.skip("ABN has no slopes")
    layer = trained(kind(6, activation=activation, activation_param=0.3)).eval()
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    close(to_batchnorm(layer, dim=3)(x), layer(x))
    with pytest.raises(ValueError, match="to_batchnorm: dim must be 2 to 5, got 6"):
        to_batchnorm(layer, dim=6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_flipped_filters_are_exact(bias: bool, training: bool) -> None:
    conv = nn.Conv2d(3, 7, 3, bias=bias).double()
    norm = trained(nn.BatchNorm2d(7)).train(training)
    before = copy.deepcopy((conv.state_dict(), norm.state_dict()))
    new_conv, layer = convert_conv_bn(conv, norm, activation="leaky_relu")
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    want = nn.functional.leaky_relu(copy.deepcopy(norm)(conv(x)), 0.01)
    close(layer(new_conv(x)), want)
    assert layer.scale_mode == "abs_eps"
    assert (layer.weight >= 0).all()
    for mine, old in zip((conv, norm), before, strict=True):
        assert all(torch.equal(v, old[n]) for n, v in mine.state_dict().items())


def test_weights_near_zero_are_refused_with_the_way_out() -> None:
    norm = trained(nn.BatchNorm2d(4))
    with torch.no_grad():
        norm.weight[2] = 1e-7
    with pytest.raises(ValueError, match=r"channels \[2\]; use from_batchnorm with scale_mode"):
        convert_conv_bn(nn.Conv2d(3, 4, 1).double(), norm)
    with pytest.raises(ValueError, match=r"weights of at least .* channels \[1, 2\]"):
        from_batchnorm(norm, scale_mode="abs_eps")
    x = torch.randn(3, 4, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(from_batchnorm(norm)(x), norm(x), rtol=1e-4, atol=1e-4)


def test_other_modules_are_refused() -> None:
    with pytest.raises(TypeError, match="norm must be a batch norm, got GroupNorm"):
        from_batchnorm(nn.GroupNorm(1, 4))
    with pytest.raises(TypeError, match="conv must be a convolution, got Linear"):
        convert_conv_bn(nn.Linear(2, 2), nn.BatchNorm1d(2))


def test_a_whole_network() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), trained(nn.BatchNorm2d(6)), nn.LeakyReLU(0.1),
        nn.Sequential(nn.Conv2d(6, 4, 1), trained(nn.BatchNorm2d(4)), nn.ReLU()),
        trained(nn.BatchNorm2d(4)), nn.ELU(),
    ).double()  # fmt: skip
    made = convert_batchnorm(net, layer=InPlaceABNSync, inplace=False)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    close(made.eval()(x), net.eval()(x))
    close(made.train()(x), net.train()(x))
    kinds = [m for m in made.modules() if isinstance(m, InPlaceABNSync)]
    assert [m.activation for m in kinds] == ["leaky_relu", "identity", "elu"]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in made.modules())


def randomised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, ABN):
            trained(module)
    return model.double().eval()


@pytest.mark.parametrize("norm", [name for name in norm_names() if name != "syncbn"])
@pytest.mark.parametrize("name", [*STRUCTURES, "tiny_base_oc"])
def test_deployed_networks_compute_the_same(name: str, norm: str) -> None:
    model = randomised(slim(name, norm=norm))
    deployed = to_deploy(model)
    assert not any(isinstance(m, ABN) for m in deployed.modules())
    left = [n for n, m in deployed.named_modules() if isinstance(m, nn.BatchNorm2d)]
    # The one norm that follows no convolution.
    behind_context = ["context.2.context.2.conv_bn_dropout.0.norm"]
    assert left == (behind_context if name == "openseg_asp_oc" else [])
    x = torch.randn(1, 3, 33, 41, dtype=torch.float64)
    want = model(x).main.detach()
    torch.testing.assert_close(deployed(x).main, want, rtol=1e-8, atol=1e-8 * want.abs().max())


def test_deployed_networks_are_made_of_torchs_ops() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), InPlaceABN(6), nn.Dropout2d(0.1), ABN(6, activation="elu"),
        nn.Conv2d(6, 2, 1), InPlaceABN(2, activation="prelu", activation_param=0.2),
    )  # fmt: skip
    net = randomised(net)
    program = torch.export.export(to_deploy(net), (torch.randn(1, 3, 8, 8, dtype=torch.float64),))
    calls = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert all(name.startswith("aten.") for name in calls)
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    close(program.module()(x), net(x))
    assert sum("batch_norm" in name for name in calls) == 1


def test_deployed_network_in_onnx() -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    net = to_deploy(nn.Sequential(nn.Conv2d(3, 6, 3), InPlaceABN(6)))
    torch.onnx.export(net, (torch.randn(1, 3, 8, 8),), dynamo=True)


def test_what_cannot_be_folded_is_refused() -> None:
    with pytest.raises(ValueError, match="running statistics in every norm"):
        to_deploy(nn.Sequential(nn.Conv2d(3, 6, 3), ABN(6, track_running_stats=False)))


def test_norms_by_name() -> None:
    assert norm_names() == ("batchnorm", "syncbn", "inplace_abn", "inplace_abn_sync")
    with pytest.raises(
        ValueError, match=r"create: norm must be one of batchnorm, .* got 'instance'"
    ):
        norm_layer("instance")
