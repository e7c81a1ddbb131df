# SPDX-License-Identifier: MIT
"""The Base-OC module: object context joined to the features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ocnet.modules._checks import check_positive
from ocnet.modules._transforms import context_fusion
from ocnet.modules.norms import BATCHNORM, Norm
from ocnet.modules.object_context import ObjectContext


class BaseOC(nn.Module):
    """Join features and their object context: ``dropout(ABN(conv1x1([context, x])))``.

    The context is the sum of one ``ObjectContext`` per entry of ``sizes``.

    Args:
        in_channels: Channels ``C`` of the input.
        out_channels: Channels of the output, and of the context.
        key_channels: Channels of queries and keys.
        value_channels: Channels of the values.
        dropout: Fraction of channels dropped in training.
        sizes: Pooling scale of each block.
        backend: Back end of ``ocnet.ops.oc_attention``.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.

    Raises:
        ValueError: Empty ``sizes``, or an entry below 1.

    Source: Yuan and Wang, OCNet (arXiv 1809.00916), Base-OC. Key names are those of the published
    code: ``stages.{i}.f_key.0``, ``.f_key.1``, ``.f_value``, ``.W``; ``conv_bn_dropout.0``, ``.1``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        key_channels: int,
        value_channels: int,
        dropout: float = 0.05,
        sizes: Sequence[int] = (1,),
        backend: str = "auto",
        norm: Norm = BATCHNORM,
    ) -> None:
        super().__init__()
        if len(sizes) == 0:
            raise ValueError("BaseOC: sizes must name at least one pooling scale, got none")
        for size in sizes:
            check_positive("BaseOC", "sizes", size)
        self.stages = nn.ModuleList(
            ObjectContext(
                in_channels, key_channels, value_channels, out_channels, size, backend, norm
            )
            for size in sizes
        )
        self.conv_bn_dropout = context_fusion(
            out_channels + in_channels, out_channels, dropout, norm
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, out_channels, H, W)`` of features ``(N, C, H, W)``."""
        context: Tensor = self.stages[0](x)
        for stage in self.stages[1:]:
            context = context + stage(x)
        joined: Tensor = self.conv_bn_dropout(torch.cat([context, x], dim=1))
        return joined
