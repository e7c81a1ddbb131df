# SPDX-License-Identifier: MIT
"""What ASP-OC and ASP-OCR have in common: dilated branches beside a branch of context."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ocnet.modules._checks import check_positive
from ocnet.modules._transforms import context_fusion, conv_abn
from ocnet.modules.norms import Norm


class DilatedBranches(nn.Module):
    """Five branches, joined: ``dropout(ABN(conv1x1([context, b_2, b_3, b_4, b_5])))``.

    ``conv2`` is a 1x1 convolution, ``conv3`` to ``conv5`` are 3x3 with the dilations, each with its
    ``ABN``.

    Args:
        context: The branch ``context``; sub-classes call it.
        in_channels: Channels of the input.
        channels: Channels of each branch.
        out_channels: Channels of the output.
        dilations: Of ``conv3`` to ``conv5``.
        dropout: Fraction of channels dropped in training.
        bias: Whether convolutions have biases.
        norm: Batch norm, called as ``norm(channels)``.

    Raises:
        ValueError: Not three dilations of at least 1.
    """

    def __init__(
        self,
        context: nn.Sequential,
        in_channels: int,
        channels: int,
        out_channels: int,
        dilations: Sequence[int],
        dropout: float,
        bias: bool,
        norm: Norm,
    ) -> None:
        super().__init__()
        function = type(self).__name__
        if len(dilations) != 3:
            raise ValueError(f"{function}: dilations must be three, got {tuple(dilations)}")
        rates = [check_positive(function, "dilations", rate) for rate in dilations]
        self.context = context
        self.conv2 = conv_abn(in_channels, channels, bias, norm)
        self.conv3 = conv_abn(in_channels, channels, bias, norm, 3, rates[0])
        self.conv4 = conv_abn(in_channels, channels, bias, norm, 3, rates[1])
        self.conv5 = conv_abn(in_channels, channels, bias, norm, 3, rates[2])
        self.conv_bn_dropout = context_fusion(5 * channels, out_channels, dropout, norm, bias)

    def join(self, context: Tensor, x: Tensor) -> Tensor:
        """Return the output of the context and of the features ``x``."""
        others = [branch(x) for branch in (self.conv2, self.conv3, self.conv4, self.conv5)]
        joined: Tensor = self.conv_bn_dropout(torch.cat([context, *others], dim=1))
        return joined
