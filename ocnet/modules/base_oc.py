# SPDX-License-Identifier: MIT
"""The Base-OC module, and the form of it that a branch of ASP-OC uses."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ocnet.modules._checks import check_positive
from ocnet.modules._transforms import context_fusion, conv_abn
from ocnet.modules.norms import BATCHNORM, Norm
from ocnet.modules.object_context import ObjectContext


class _Contexts(nn.Module):
    """One ``ObjectContext`` for each pooling scale, as ``stages``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        key_channels: int,
        value_channels: int,
        sizes: Sequence[int],
        backend: str,
        norm: Norm,
        shared: bool,
    ) -> None:
        super().__init__()
        function = type(self).__name__
        if len(sizes) == 0:
            raise ValueError(f"{function}: sizes must name at least one pooling scale, got none")
        for size in sizes:
            check_positive(function, "sizes", size)
        self.stages = nn.ModuleList(
            ObjectContext(
                in_channels, key_channels, value_channels, out_channels, size, backend, norm, shared
            )
            for size in sizes
        )

    def context(self, x: Tensor) -> Tensor:
        """Return the sum of the contexts, ``(N, out_channels, H, W)``."""
        context: Tensor = self.stages[0](x)
        for stage in self.stages[1:]:
            context = context + stage(x)
        return context


class BaseOC(_Contexts):
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
        shared: Queries and keys share one transform, see ``ObjectContext``.

    Raises:
        ValueError: Empty ``sizes``, or an entry below 1.

    Source: Yuan and Wang, OCNet (arXiv 1809.00916), Base-OC. Key names are those of the published
    code: ``stages.{i}.f_key.0``, ``.f_key.1``, ``.f_query``, ``.f_value``, ``.W``;
    ``conv_bn_dropout.0``, ``.1``.
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
        shared: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, key_channels, value_channels, sizes, backend, norm, shared
        )
        self.conv_bn_dropout = context_fusion(
            out_channels + in_channels, out_channels, dropout, norm
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, out_channels, H, W)`` of features ``(N, C, H, W)``."""
        joined: Tensor = self.conv_bn_dropout(torch.cat([self.context(x), x], dim=1))
        return joined


class BaseOCContext(_Contexts):
    """The object context alone, not joined to the features: ``ABN(conv1x1(context))``.

    Args:
        in_channels: Channels ``C`` of the input.
        out_channels: Channels of the output, and of the context.
        key_channels: Channels of queries and keys.
        value_channels: Channels of the values.
        sizes: Pooling scale of each block.
        backend: Back end of ``ocnet.ops.oc_attention``.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.
        shared: As in ``ObjectContext``. openseg's form, whose transforms are not shared, has no
            convolution here: ``ABN(context)``.

    Raises:
        ValueError: Empty ``sizes``, or an entry below 1.

    Source: the context branch of ASP-OC in the published codes. Neither has dropout there, whatever its
    arguments say: the one has no such layer, the other one of rate 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        key_channels: int,
        value_channels: int,
        sizes: Sequence[int] = (1,),
        backend: str = "auto",
        norm: Norm = BATCHNORM,
        shared: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, key_channels, value_channels, sizes, backend, norm, shared
        )
        self.conv_bn_dropout = (
            conv_abn(out_channels, out_channels, True, norm)
            if shared
            else nn.Sequential(norm(out_channels))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, out_channels, H, W)`` of features ``(N, C, H, W)``."""
        context: Tensor = self.conv_bn_dropout(self.context(x))
        return context
