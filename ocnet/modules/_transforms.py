# SPDX-License-Identifier: MIT
"""The transforms that the context modules have in common."""

from torch import nn

from ocnet.modules.norms import Norm

# The published block runs its shared key transform twice in a training step, once as query and once
# as key, on the same map: two updates of the running statistics by the same batch statistics. Here
# it runs once, so one update must move them as far.
_PUBLISHED_MOMENTUM = 0.1
SHARED_MOMENTUM = 1 - (1 - _PUBLISHED_MOMENTUM) ** 2


def key_transform(in_channels: int, key_channels: int, norm: Norm) -> nn.Sequential:
    """Return the transform of the queries and keys: 1x1 convolution, batch norm, leaky ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, key_channels, 1), norm(key_channels, momentum=SHARED_MOMENTUM)
    )


def output_transform(value_channels: int, out_channels: int) -> nn.Conv2d:
    """Return the 1x1 convolution of the context, zero at the start: context grows from nothing."""
    transform = nn.Conv2d(value_channels, out_channels, 1)
    nn.init.zeros_(transform.weight)
    if transform.bias is not None:
        nn.init.zeros_(transform.bias)
    return transform


def conv_abn(
    in_channels: int, out_channels: int, bias: bool, norm: Norm, kernel: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Return a convolution that keeps the size of the map, with its batch norm and activation."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, 1, padding, dilation, bias=bias),
        norm(out_channels),
    )


def two_layers(in_channels: int, channels: int, bias: bool, norm: Norm) -> nn.Sequential:
    """Return the transform of queries or keys where each has its own: two 1x1 layers."""
    return nn.Sequential(
        *conv_abn(in_channels, channels, bias, norm), *conv_abn(channels, channels, bias, norm)
    )


def context_fusion(
    channels: int, out_channels: int, dropout: float, norm: Norm, bias: bool = True
) -> nn.Sequential:
    """Return what follows on contexts and features joined: 1x1 convolution, norm, dropout."""
    return nn.Sequential(
        *conv_abn(channels, out_channels, bias, norm),
        nn.Dropout2d(dropout),
    )
