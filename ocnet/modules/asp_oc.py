# SPDX-License-Identifier: MIT
"""The ASP-OC module: object context beside dilated convolutions."""

from collections.abc import Sequence

from torch import Tensor, nn

from ocnet.modules._transforms import conv_abn
from ocnet.modules.base_oc import BaseOCContext
from ocnet.modules.dilated_branches import DilatedBranches
from ocnet.modules.norms import BATCHNORM, Norm


class ASPOC(DilatedBranches):
    """Join object context and dilated branches, see ``DilatedBranches``.

    The branch of context is a 3x3 convolution, ``ABN`` and ``BaseOCContext``. There is no branch of image
    pooling: that of context takes its place. Only the first convolution and those of the context have
    biases.

    Args:
        in_channels: Channels ``C`` of the input.
        channels: Channels of each branch; the output has twice as many.
        key_channels: Channels of queries and keys; half of ``channels`` by default.
        value_channels: Channels of the values; by default those of the branches, or half of them where
            transforms are not shared, as published.
        dilations: Of the three dilated branches.
        dropout: Fraction of channels dropped in training.
        sizes: Pooling scale of each block of object context.
        backend: Back end of ``ocnet.ops.oc_attention``.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.
        shared: As in ``BaseOCContext``.

    Raises:
        ValueError: Not three dilations, or numbers below 1.

    Source: Yuan and Wang, OCNet (arXiv 1809.00916), ASP-OC. Key names are those of the published codes:
    ``context.0``, ``.1``, ``.2.stages.{i}``, ``.2.conv_bn_dropout``; ``conv2`` to ``conv5``;
    ``conv_bn_dropout``.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 256,
        key_channels: int | None = None,
        value_channels: int | None = None,
        dilations: Sequence[int] = (12, 24, 36),
        dropout: float = 0.1,
        sizes: Sequence[int] = (2,),
        backend: str = "auto",
        norm: Norm = BATCHNORM,
        shared: bool = True,
    ) -> None:
        half = max(1, channels // 2)
        key = half if key_channels is None else key_channels
        value = (channels if shared else half) if value_channels is None else value_channels
        context = nn.Sequential(
            *conv_abn(in_channels, channels, True, norm, 3),
            BaseOCContext(channels, channels, key, value, sizes, backend, norm, shared),
        )
        super().__init__(
            context, in_channels, channels, 2 * channels, dilations, dropout, False, norm
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, 2 * channels, H, W)`` of features ``(N, C, H, W)``."""
        return self.join(self.context(x), x)
