# SPDX-License-Identifier: MIT
"""Features to logits without context: the baselines, and every auxiliary head."""

from torch import nn

from ocnet.modules import BATCHNORM, Norm


def classifier(
    in_channels: int,
    num_classes: int,
    channels: int = 512,
    dropout: float | None = 0.05,
    *,
    kernel: int = 3,
    bias: bool = True,
    class_bias: bool = True,
    norm: Norm = BATCHNORM,
) -> nn.Sequential:
    """Return a convolution, ``ABN``, dropout and a 1x1 convolution to the classes.

    Args:
        in_channels: Channels ``C`` of the features ``(N, C, h, w)``.
        num_classes: Classes ``K`` of the logits ``(N, K, h, w)``.
        channels: Channels between the convolutions.
        dropout: Fraction of channels dropped in training; ``None``: no such layer, and the last one has the
            number 2 instead of 3 in published key names.
        kernel: Side of the first convolution, padded to keep the size; odd.
        bias: Whether it has a bias.
        class_bias: Whether the last one has.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.

    Source: the heads ``dsn``, ``dsn_head``, ``aux_head`` and ``cls_head`` of the published codes, which
    differ in these arguments.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=bias),
        norm(channels),
    ]
    if dropout is not None:
        layers.append(nn.Dropout2d(dropout))
    return nn.Sequential(*layers, nn.Conv2d(channels, num_classes, 1, bias=class_bias))
