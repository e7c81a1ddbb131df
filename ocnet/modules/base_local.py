# SPDX-License-Identifier: MIT
"""The local control of the Base-OC module."""

import torch
from torch import Tensor, nn

from ocnet.modules._transforms import context_fusion
from ocnet.modules.local_context import LocalContext
from ocnet.modules.norms import BATCHNORM, Norm


class BaseLocal(nn.Module):
    """Join features and their local context: ``BaseOC`` with ``LocalContext`` for attention.

    The parameters are the same, name for name.

    Args:
        in_channels: Channels ``C`` of the input.
        out_channels: Channels of the output, and of the context.
        key_channels: Channels of ``f_key``.
        value_channels: Channels of ``f_value``; must equal ``key_channels``.
        dropout: Fraction of channels dropped in training.
        window: Edge of the window, in pixels; odd.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        key_channels: int,
        value_channels: int,
        dropout: float = 0.05,
        window: int = 5,
        norm: Norm = BATCHNORM,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [LocalContext(in_channels, key_channels, value_channels, out_channels, window, norm)]
        )
        self.conv_bn_dropout = context_fusion(
            out_channels + in_channels, out_channels, dropout, norm
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, out_channels, H, W)`` of features ``(N, C, H, W)``."""
        joined: Tensor = self.conv_bn_dropout(torch.cat([self.stages[0](x), x], dim=1))
        return joined
