# SPDX-License-Identifier: MIT
"""The backbones: published sizes, map sizes, initial weights, and what is kept for backward."""

import math

import pytest
import torch
from torch import Tensor, nn

from ocnet.models.backbones import (
    STRIDE_8_AFTERWARDS,
    STRIDE_16,
    Backbone,
    Body,
    HRNetBody,
    ResNetBody,
    TinyBody,
)
from ocnet.models.backbones.blocks import BasicBlock, Bottleneck
from ocnet.modules import ABN, norm_layer
from tests.models.slim import awake

DEPTHS = (18, 50, 101)


def on_meta(body: Body) -> Backbone:
    with torch.device("meta"):
        return Backbone(body)


def test_resnet101_has_the_published_numbers() -> None:
    net = on_meta(ResNetBody(101))
    assert len(net.state_dict()) == 530
    assert sum(p.numel() for p in net.parameters()) == 42_623_936
    assert len([m for m in net.modules() if isinstance(m, ABN)]) == 106
    assert net.body.channels == (1024, 2048)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(
    ("image", "features"),
    [((769, 769), (97, 97)), ((1024, 2048), (129, 257)), ((768, 1536), (97, 193))],
    ids=str,
)
def test_published_map_sizes(depth: int, image: tuple[int, int], features: tuple[int, int]) -> None:
    net = on_meta(ResNetBody(depth))
    early, late = net(torch.empty(2, 3, *image, device="meta"))
    assert early.shape == (2, net.body.channels[0], *features)
    assert late.shape == (2, net.body.channels[1], *features)


def test_stride_16_and_the_first_layer() -> None:
    net = on_meta(ResNetBody(50, dilation=STRIDE_16, taps=(1, 2, 3, 4)))
    maps = net(torch.empty(1, 3, 473, 473, device="meta"))
    assert [tuple(x.shape[1:]) for x in maps] == [
        (256, 119, 119),
        (512, 60, 60),
        (1024, 30, 30),
        (2048, 30, 30),
    ]
    assert net.body.channels == (256, 512, 1024, 2048)


@pytest.mark.parametrize("depth", DEPTHS)
def test_dilation_of_every_block(depth: int) -> None:
    for dilation, firsts in ((None, (1, 1, 2, 4)), (STRIDE_8_AFTERWARDS, (1, 1, 1, 2))):
        net = on_meta(
            ResNetBody(depth) if dilation is None else ResNetBody(depth, dilation=dilation)
        )
        for number, rate, first in zip((1, 2, 3, 4), (1, 1, 2, 4), firsts, strict=True):
            layer = net.get_submodule(f"layer{number}")
            wide = [
                m for m in layer.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
            ]
            rates = [m.dilation[0] for m in wide]
            assert rates == [first, *[rate] * (len(wide) - 1)]
            assert all(m.dilation == m.padding for m in wide)
            strides = [m.stride for m in wide]
            assert strides[0] == ((2, 2) if number == 2 else (1, 1))
            assert set(strides[1:]) == {(1, 1)}


def test_norms_activate_but_those_of_shortcuts() -> None:
    net = Backbone(ResNetBody(18)).eval()
    named = {n: m.activation for n, m in net.named_modules() if isinstance(m, ABN)}
    assert {a for n, a in named.items() if "downsample" in n} == {"identity"}
    assert {a for n, a in named.items() if "downsample" not in n} == {"relu"}
    for features in net(torch.randn(1, 3, 33, 33)):
        assert float(features.detach().min()) == 0
        assert float(features.detach().max()) > 0


@pytest.mark.parametrize("stride", [1, 2])
def test_a_silent_block_is_its_shortcut(stride: int) -> None:
    block = BasicBlock(4, 4, stride, 2, norm=ABN).eval()
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

    net = Backbone(ResNetBody(18, norm, 5, "leaky_relu"))
    assert net(torch.randn(1, 5, 32, 40))[-1].shape == (1, 512, 5, 6)
    assert {m.eps for m in net.modules() if isinstance(m, ABN)} == {0.5}
    assert set(asked) == {"identity", "leaky_relu"}


def test_every_parameter_of_resnet18_learns() -> None:
    net = Backbone(ResNetBody(18))
    net(torch.randn(2, 3, 33, 33))[-1].square().sum().backward()
    assert [name for name, p in net.named_parameters() if not float(p.grad.abs().max()) > 0] == []


def test_hrnet_w48() -> None:
    net = on_meta(HRNetBody(48))
    (x,) = net(torch.empty(1, 3, 769, 769, device="meta"))
    assert x.shape == (1, 720, 193, 193)
    # With the two 1 x 1 layers of 19 classes of the published network: 65.859 million, which it gives as 65.8.
    parameters = sum(p.numel() for p in net.parameters())
    assert round((parameters + 720 * 720 + 720 + 2 * 720 + 720 * 19 + 19) / 1e6, 1) == 65.9


@pytest.mark.parametrize("size", [(33, 47), (64, 64), (1, 1), (65, 5)], ids=str)
def test_hrnet_takes_any_size(size: tuple[int, int]) -> None:
    net = Backbone(HRNetBody(4, exchanges=(1, 1, 1), blocks=1)).eval()
    rows, columns = (-(-n // 4) for n in size)
    assert net(torch.randn(1, 3, *size))[0].shape == (1, 60, rows, columns)


def deviations(net: nn.Module) -> list[tuple[float, nn.Conv2d]]:
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    return [(float(c.weight.detach().std()), c) for c in convs if c.weight.numel() > 4096]


@pytest.mark.parametrize("kind", ["torch", "he", "small"])
def test_initial_weights(kind: str) -> None:
    """Torch's own are uniform with deviation 1 / sqrt(3 * fan_in)."""
    body: Body = {
        "torch": ResNetBody(18),
        "he": ResNetBody(18, stem="resinit", he_init=True),
        "small": HRNetBody(16, exchanges=(1, 1, 1), blocks=1, small_init=True),
    }[kind]
    found = deviations(Backbone(body))
    assert len(found) > 15
    for deviation, conv in found:
        fan_in = conv.weight[0].numel()
        want = {
            "torch": 1 / math.sqrt(3 * fan_in),
            "he": math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels)),
            "small": 0.001,
        }[kind]
        # Of more than 4096 draws: seven deviations of the estimate.
        assert abs(deviation / want - 1) < 7 / math.sqrt(2 * conv.weight.numel())


class Spy(torch.autograd.graph.saved_tensors_hooks):
    """Counts numbers that are kept for backward."""

    def __init__(self) -> None:
        self.numbers = 0
        super().__init__(self.keep, lambda x: x)

    def keep(self, x: Tensor) -> Tensor:
        self.numbers += x.numel() * (not isinstance(x, nn.Parameter))
        return x


@pytest.mark.parametrize("norm", ["batchnorm", "inplace_abn"])
@pytest.mark.parametrize("kind", ["resnet", "hrnet"])
def test_blocks_can_be_computed_again(kind: str, norm: str) -> None:
    """The same numbers, gradients and statistics, with less kept."""
    results, kept = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        layers = norm_layer(norm)
        body: Body = (
            ResNetBody(18, layers, recompute=recompute)
            if kind == "resnet"
            else HRNetBody(8, layers, exchanges=(1, 1, 1), recompute=recompute)
        )
        net = awake(Backbone(body)).double().train()
        images = torch.randn(2, 3, 65, 49, dtype=torch.float64, requires_grad=True)
        spy = Spy()
        with spy:
            out = net(images)[-1]
        kept.append(spy.numbers)
        out.square().mean().backward()
        grads = [p.grad for p in net.parameters()]
        results.append([out.detach(), images.grad, *grads, *net.buffers()])
    assert kept[1] < 0.5 * kept[0]
    for got, want in zip(results[1], results[0], strict=True):
        assert torch.equal(got, want)


def test_nothing_is_computed_again_in_evaluation() -> None:
    net = Backbone(ResNetBody(18, recompute=True)).eval()
    calls = []
    net.layer1[0].register_forward_hook(lambda *_: calls.append(1))
    net(torch.randn(1, 3, 33, 33, requires_grad=True))[-1].sum().backward()
    assert len(calls) == 1


def test_tiny_encoder() -> None:
    net = Backbone(TinyBody(in_channels=1))
    assert net.body.channels == (64, 64)
    early, late = net(torch.randn(2, 1, 64, 48))
    assert early.shape == late.shape == (2, 64, 16, 12)


def test_tiny_encoder_sees_19_pixels() -> None:
    net = Backbone(TinyBody(in_channels=1, width=4)).eval()
    image: Tensor = torch.randn(1, 1, 64, 64, requires_grad=True)
    net(image)[-1][0, :, 8, 8].sum().backward()
    touched = image.grad[0, 0].abs() > 0
    assert int(touched.any(0).sum()) == int(touched.any(1).sum()) == 19
    assert touched.any(1).nonzero().min() == 4 * 8 - 9


def test_bottlenecks_have_the_stride_on_the_3x3() -> None:
    block = Bottleneck(8, 4, stride=2)
    assert [block.conv1.stride, block.conv2.stride, block.conv3.stride] == [(1, 1), (2, 2), (1, 1)]
