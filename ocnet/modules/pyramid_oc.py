# SPDX-License-Identifier: MIT
"""The Pyramid-OC module: object context within the cells of several grids, joined to the features."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ocnet.modules._checks import check_positive
from ocnet.modules._transforms import context_fusion, conv_abn
from ocnet.modules.attention_transforms import AttentionTransforms
from ocnet.modules.norms import BATCHNORM, Norm
from ocnet.ops import Grid, attention_rows, pyramid_attention


class PyramidOC(nn.Module):
    """Join features and their contexts within cells: ``dropout(ABN(conv1x1([up(x), c_1, ...])))``.

    Each size ``s`` has a block of its own: the context of a pixel is that of ``ObjectContext``, but of
    the pixels of its cell only, where ``s x s`` cells cut the map (``ocnet.ops.Grid``). Queries, keys
    and values are transforms of the whole map, so the statistics of the key's batch norm are those of
    all its pixels; all sizes attend in one call of ``ocnet.ops.pyramid_attention``. ``up`` widens the
    features to the width of all contexts together.

    Args:
        in_channels: Channels ``C`` of the input.
        out_channels: Channels of the output, and of the context of each size.
        key_channels: Channels of queries and keys.
        value_channels: Channels of the values.
        dropout: Fraction of channels dropped in training.
        sizes: Cells to a side, of each block.
        backend: Back end of ``ocnet.ops.pyramid_attention``.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.

    Raises:
        ValueError: Empty ``sizes``, or an entry below 1.

    Note:
        The published module has 512 channels in and out, 256 of keys and 512 of values, and four
        sizes; there ``up_dr`` has 2048 channels, four times either. Where input and output differ, it
        is ``len(sizes) * out_channels`` here.

    Source: Yuan and Wang, OCNet (arXiv 1809.00916), Pyramid-OC. Key names are those of the published
    code: ``stages.{i}.f_key.0``, ``.f_key.1``, ``.f_value``, ``.W``; ``up_dr.0``, ``.1``;
    ``conv_bn_dropout.0``, ``.1``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        key_channels: int,
        value_channels: int,
        dropout: float = 0.05,
        sizes: Sequence[int] = (1, 2, 3, 6),
        backend: str = "auto",
        norm: Norm = BATCHNORM,
    ) -> None:
        super().__init__()
        if len(sizes) == 0:
            raise ValueError("PyramidOC: sizes must name at least one number of cells, got none")
        self.sizes = [check_positive("PyramidOC", "sizes", size) for size in sizes]
        self.backend = backend
        self.stages = nn.ModuleList(
            AttentionTransforms(in_channels, key_channels, value_channels, out_channels, norm)
            for _ in sizes
        )
        width = len(sizes) * out_channels
        self.conv_bn_dropout = context_fusion(2 * width, out_channels, dropout, norm)
        self.up_dr = conv_abn(in_channels, width, bias=True, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, out_channels, H, W)`` of features ``(N, C, H, W)``."""
        blocks = self._blocks()
        maps = []
        for block in blocks:
            key: Tensor = block.f_key(x)
            maps.append((key, key, block.f_value(x)))
        contexts = pyramid_attention(maps, self.sizes, backend=self.backend)
        parts = [block.W(context) for block, context in zip(blocks, contexts, strict=True)]
        joined: Tensor = self.conv_bn_dropout(torch.cat([self.up_dr(x), *parts], dim=1))
        return joined

    def attention_rows(self, x: Tensor, points: Tensor) -> list[Tensor]:
        """Return the weights that chosen pixels give to the pixels of their cells.

        In training mode this moves the running statistics, as any evaluation of ``f_key`` does.

        Args:
            x: Features ``(N, C, H, W)``.
            points: ``(P, 2)`` or ``(N, P, 2)``, integer, rows and columns in ``x``.

        Returns:
            For each size ``(N, P, H, W)``; each map sums to 1, and is zero outside the cell.

        Raises:
            TypeError: ``points`` are not integers.
            ValueError: ``points`` of another shape, or outside ``x``.
        """
        keys = [block.f_key(x) for block in self._blocks()]
        return [
            attention_rows(key, key, points, partition=Grid(size))
            for key, size in zip(keys, self.sizes, strict=True)
        ]

    def extra_repr(self) -> str:
        """Return the settings that the sub-modules do not show."""
        return f"sizes={self.sizes}, backend={self.backend}"

    def _blocks(self) -> list[AttentionTransforms]:
        return [cast(AttentionTransforms, block) for block in self.stages]
