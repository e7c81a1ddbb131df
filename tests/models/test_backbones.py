# SPDX-License-Identifier: MIT
"""The backbones: published sizes, names and map sizes."""

import pytest
import torch
from torch import Tensor, nn

from ocnet.models.backbones import ResNet, TinyEncoder, resnet18, resnet50, resnet101
from ocnet.models.backbones.resnet import BasicBlock
from ocnet.modules import ABN

BUILDERS = {"resnet18": resnet18, "resnet50": resnet50, "resnet101": resnet101}


def on_meta(name: str) -> ResNet:
    with torch.device("meta"):
        return BUILDERS[name]()


def published_names() -> list[str]:
    """The inventory of the published ResNet-101, from its layout."""

    def norm(name: str) -> list[str]:
        return [f"{name}.{k}" for k in ("weight", "bias", "running_mean", "running_var")]

    names = []
    for i in (1, 2, 3):
        names += [f"conv{i}.weight", *norm(f"bn{i}")]
    for layer, blocks in ((1, 3), (2, 4), (3, 23), (4, 3)):
        for block in range(blocks):
            prefix = f"layer{layer}.{block}"
            for i in (1, 2, 3):
                names += [f"{prefix}.conv{i}.weight", *norm(f"{prefix}.bn{i}")]
            if block == 0:
                names += [f"{prefix}.downsample.0.weight", *norm(f"{prefix}.downsample.1")]
    return names


def test_resnet101_is_the_published_one() -> None:
    net = on_meta("resnet101")
    assert list(net.state_dict()) == published_names()
    assert len(net.state_dict()) == 530
    assert sum(p.numel() for p in net.parameters()) == 42_623_936
    assert len([m for m in net.modules() if isinstance(m, ABN)]) == 106
    assert (net.aux_channels, net.out_channels) == (1024, 2048)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize(
    ("image", "features"),
    [((769, 769), (97, 97)), ((1024, 2048), (129, 257)), ((768, 1536), (97, 193))],
    ids=str,
)
def test_published_map_sizes(name: str, image: tuple[int, int], features: tuple[int, int]) -> None:
    net = on_meta(name)
    aux, out = net(torch.empty(2, 3, *image, device="meta"))
    assert aux.shape == (2, net.aux_channels, *features)
    assert out.shape == (2, net.out_channels, *features)


@pytest.mark.parametrize("name", BUILDERS)
def test_dilation_in_every_block(name: str) -> None:
    net = on_meta(name)
    for number, dilation in ((1, 1), (2, 1), (3, 2), (4, 4)):
        layer = net.get_submodule(f"layer{number}")
        wide = [m for m in layer.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert {m.dilation for m in wide} == {m.padding for m in wide} == {(dilation, dilation)}
        strides = [m.stride for m in wide]
        assert strides[0] == ((2, 2) if number == 2 else (1, 1))
        assert set(strides[1:]) == {(1, 1)}


def test_norms_activate_but_those_of_shortcuts() -> None:
    net = resnet18().eval()
    named = {n: m.activation for n, m in net.named_modules() if isinstance(m, ABN)}
    assert {a for n, a in named.items() if "downsample" in n} == {"identity"}
    assert {a for n, a in named.items() if "downsample" not in n} == {"relu"}
    aux, out = net(torch.randn(1, 3, 33, 33))
    for features in (aux, out):
        assert float(features.detach().min()) == 0
        assert float(features.detach().max()) > 0


@pytest.mark.parametrize("stride", [1, 2])
def test_a_silent_block_is_its_shortcut(stride: int) -> None:
    block = BasicBlock(4, 4, stride, 2, ABN).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 4, 8, 8)
    shortcut = x if block.downsample is None else block.downsample(x)
    assert (block.downsample is None) == (stride == 1)
    assert torch.equal(block(x), shortcut.relu())


def test_norm_and_channels_are_the_callers() -> None:
    asked = []

    def norm(channels: int, activation: str) -> nn.Module:
        asked.append(activation)
        return ABN(channels, activation=activation, eps=0.5)

    net = ResNet(BasicBlock, (1, 1, 1, 1), norm=norm, in_channels=5, activation="leaky_relu")
    assert net(torch.randn(1, 5, 32, 40)).out.shape == (1, 512, 5, 6)
    assert {m.eps for m in net.modules() if isinstance(m, ABN)} == {0.5}
    assert set(asked) == {"identity", "leaky_relu"}


def test_every_parameter_of_resnet18_learns() -> None:
    net = resnet18()
    net(torch.randn(2, 3, 33, 33)).out.square().sum().backward()
    assert [name for name, p in net.named_parameters() if not float(p.grad.abs().max()) > 0] == []


def test_tiny_encoder() -> None:
    net = TinyEncoder(in_channels=1)
    assert (net.aux_channels, net.out_channels) == (64, 64)
    aux, out = net(torch.randn(2, 1, 64, 48))
    assert aux.shape == out.shape == (2, 64, 16, 12)


def test_tiny_encoder_sees_19_pixels() -> None:
    net = TinyEncoder(in_channels=1, width=4).eval()
    image: Tensor = torch.randn(1, 1, 64, 64, requires_grad=True)
    net(image).out[0, :, 8, 8].sum().backward()
    touched = image.grad[0, 0].abs() > 0
    assert int(touched.any(0).sum()) == int(touched.any(1).sum()) == 19
    assert touched.any(1).nonzero().min() == 4 * 8 - 9
