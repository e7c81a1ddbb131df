# SPDX-License-Identifier: MIT
"""Dilated ResNets with a deep stem, at stride 8."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ocnet.models.backbones.features import Features
from ocnet.modules import BATCHNORM, Norm, activated

# Stride and dilation of layer1 to layer4: the last two trade their strides for dilation.
_STRIDES = (1, 2, 1, 1)
_DILATIONS = (1, 1, 2, 4)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; the first has the stride, both the dilation.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the convolutions, and of the output.
        stride: Stride of the first convolution.
        dilation: Dilation of both.
        norm: Batch norm, called as ``norm(channels, activation=...)``.
        activation: ``relu``, or ``leaky_relu`` for in-place norms to save memory.
    """

    expansion = 1
    conv_norm_pairs = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        dilation: int,
        norm: Norm = BATCHNORM,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        act = activated(norm, activation)
        self.conv1 = _conv3x3(in_channels, channels, stride, dilation)
        self.bn1 = act(channels)
        self.conv2 = _conv3x3(channels, channels, 1, dilation)
        self.bn2 = act(channels)
        self.downsample = _shortcut(in_channels, channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``act(f(x) + shortcut(x))``."""
        y: Tensor = self.conv2(self.bn1(self.conv1(x)))
        y = self.bn2(y, x if self.downsample is None else self.downsample(x))
        return y


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; the 3x3 has the stride and the dilation.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the first two convolutions; the output has four times as many.
        stride: Stride of the 3x3 convolution.
        dilation: Its dilation.
        norm: Batch norm, called as ``norm(channels, activation=...)``.
        activation: ``relu``, or ``leaky_relu`` for in-place norms to save memory.
    """

    expansion = 4
    conv_norm_pairs = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        dilation: int,
        norm: Norm = BATCHNORM,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        act = activated(norm, activation)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = act(channels)
        self.conv2 = _conv3x3(channels, channels, stride, dilation)
        self.bn2 = act(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = act(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``act(f(x) + shortcut(x))``."""
        y: Tensor = self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        y = self.bn3(y, x if self.downsample is None else self.downsample(x))
        return y


class ResNet(nn.Module):
    """A ResNet with three 3x3 convolutions for a stem, dilated to stride 8.

    ``layer3`` and ``layer4`` keep their resolution, with dilation 2 and 4 in every block. The
    stem's pooling rounds up, so 769 pixels give 97 and 1024 give 129.

    Args:
        block: ``BasicBlock`` or ``Bottleneck``.
        layers: Blocks in each of the four layers.
        norm: Batch norm, called as ``norm(channels, activation=...)``.
        in_channels: Channels of the images.
        activation: ``relu``, as published, or ``leaky_relu`` (slope 0.01), with which in-place norms save
            memory: a ReLU has no inverse.

    Source: He et al., CVPR 2016; the dilated deep-stem form of Yuan and Wang, OCNet (arXiv
    1809.00916), with the key names of its code.
    """

    conv_norm_pairs = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        norm: Norm = BATCHNORM,
        in_channels: int = 3,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.aux_channels = 256 * block.expansion
        self.out_channels = 512 * block.expansion
        act = activated(norm, activation)
        self.conv1 = _conv3x3(in_channels, 64, 2, 1)
        self.bn1 = act(64)
        self.conv2 = _conv3x3(64, 64, 1, 1)
        self.bn2 = act(64)
        self.conv3 = _conv3x3(64, 128, 1, 1)
        self.bn3 = act(128)
        widths = (128, *(c * block.expansion for c in (64, 128, 256, 512)))
        stages = [
            _layer(
                block, widths[i], 64 * 2**i, layers[i], _STRIDES[i], _DILATIONS[i], norm, activation
            )
            for i in range(4)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, images: Tensor) -> Features:
        """Return features of images ``(N, in_channels, H, W)``; ``aux`` is ``layer3``."""
        x = self.bn1(self.conv1(images))
        x = self.bn2(self.conv2(x))
        x = self.bn3(self.conv3(x))
        x = F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True)
        aux = self.layer3(self.layer2(self.layer1(x)))
        return Features(aux=aux, out=self.layer4(aux))


def resnet18(in_channels: int = 3, norm: Norm = BATCHNORM, activation: str = "relu") -> ResNet:
    """Return the dilated deep-stem ResNet-18; 256 and 512 channels."""
    return ResNet(BasicBlock, (2, 2, 2, 2), norm, in_channels, activation)


def resnet50(in_channels: int = 3, norm: Norm = BATCHNORM, activation: str = "relu") -> ResNet:
    """Return the dilated deep-stem ResNet-50; 1024 and 2048 channels."""
    return ResNet(Bottleneck, (3, 4, 6, 3), norm, in_channels, activation)


def resnet101(in_channels: int = 3, norm: Norm = BATCHNORM, activation: str = "relu") -> ResNet:
    """Return the dilated deep-stem ResNet-101; 1024 and 2048 channels."""
    return ResNet(Bottleneck, (3, 4, 23, 3), norm, in_channels, activation)


def _conv3x3(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False
    )


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        norm(out_channels, activation="identity"),
    )


def _layer(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    channels: int,
    count: int,
    stride: int,
    dilation: int,
    norm: Norm,
    activation: str,
) -> nn.Sequential:
    blocks = [block(in_channels, channels, stride, dilation, norm, activation)]
    blocks += [
        block(channels * block.expansion, channels, 1, dilation, norm, activation)
        for _ in range(count - 1)
    ]
    return nn.Sequential(*blocks)
