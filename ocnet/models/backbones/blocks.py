# SPDX-License-Identifier: MIT
"""Residual blocks."""

from torch import Tensor, nn

from ocnet.modules import BATCHNORM, Norm, activated


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; the first has the stride.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the convolutions, and of the output.
        stride: Stride of the first convolution.
        dilation: Dilation of both.
        first_dilation: Of the first, where it is another one.
        norm: Batch norm, called as ``norm(channels, activation=...)``.
        activation: ``relu``, or ``leaky_relu`` for in-place norms to save memory.
    """

    expansion = 1
    conv_norm_pairs = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        dilation: int = 1,
        first_dilation: int | None = None,
        norm: Norm = BATCHNORM,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        act = activated(norm, activation)
        first = dilation if first_dilation is None else first_dilation
        self.conv1 = conv3x3(in_channels, channels, stride, first)
        self.bn1 = act(channels)
        self.conv2 = conv3x3(channels, channels, 1, dilation)
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
        first_dilation: In its place, where given.
        norm: Batch norm, called as ``norm(channels, activation=...)``.
        activation: ``relu``, or ``leaky_relu`` for in-place norms to save memory.
    """

    expansion = 4
    conv_norm_pairs = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        dilation: int = 1,
        first_dilation: int | None = None,
        norm: Norm = BATCHNORM,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        act = activated(norm, activation)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = act(channels)
        self.conv2 = conv3x3(
            channels, channels, stride, dilation if first_dilation is None else first_dilation
        )
        self.bn2 = act(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = act(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``act(f(x) + shortcut(x))``."""
        y: Tensor = self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        y = self.bn3(y, x if self.downsample is None else self.downsample(x))
        return y


Block = type[BasicBlock] | type[Bottleneck]


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias, padded to keep the size but for the stride."""
    return nn.Conv2d(
        in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False
    )


def residual_layer(
    block: Block,
    in_channels: int,
    channels: int,
    count: int,
    norm: Norm,
    activation: str,
    stride: int = 1,
    dilation: int = 1,
    first_dilation: int | None = None,
) -> nn.Sequential:
    """Return blocks one after another; the first has the stride and may have another dilation.

    Args:
        block: ``BasicBlock`` or ``Bottleneck``.
        in_channels: Channels of the input.
        channels: Channels of the blocks, before their expansion.
        count: Number of blocks.
        norm: Batch norm, called as ``norm(channels, activation=...)``.
        activation: Of the blocks.
        stride: Of the first block.
        dilation: Of the blocks.
        first_dilation: Of the strided convolution of the first, where it is another one.
    """
    blocks = [block(in_channels, channels, stride, dilation, first_dilation, norm, activation)]
    blocks += [
        block(channels * block.expansion, channels, 1, dilation, None, norm, activation)
        for _ in range(count - 1)
    ]
    return nn.Sequential(*blocks)


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        norm(out_channels, activation="identity"),
    )
