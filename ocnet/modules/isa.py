# SPDX-License-Identifier: MIT
"""Interlaced sparse self-attention: attention among far pixels, then among near ones."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocnet.modules._checks import check_positive
from ocnet.modules._transforms import context_fusion, conv_abn, two_layers
from ocnet.modules.norms import BATCHNORM, Norm
from ocnet.modules.points import rescale_points
from ocnet.ops import Blocks, Partition, Strided, attention_rows, partitioned_attention


class SelfAttention(nn.Module):
    """Give each pixel the values of the pixels of its group, weighted by likeness.

    ``W(softmax(E ** -0.5 * <f_query(x), f_key(x)>) f_value(x))``, with transforms of two layers each
    for queries and for keys. No convolution has a bias. ``W`` ends in a batch norm and is not zero at
    the start: where one unit follows on another, zeros of the first would be all the second sees.

    Args:
        in_channels: Channels ``C`` of the input.
        key_channels: Channels ``E`` of queries and keys.
        value_channels: Channels ``Ev`` of the values.
        out_channels: Channels of the output.
        partition: The groups.
        backend: Back end of ``ocnet.ops.partitioned_attention``.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.

    Source: the attention unit of the published code of ISA (arXiv 1907.12273). Key names are those of
    that code: ``f_key.0`` to ``.3``, ``f_query.0`` to ``.3``, ``f_value``, ``W.0``, ``.1``. Weights start
    as torch's layers do.
    """

    def __init__(
        self,
        in_channels: int,
        key_channels: int,
        value_channels: int,
        out_channels: int,
        partition: Partition,
        backend: str = "auto",
        norm: Norm = BATCHNORM,
    ) -> None:
        super().__init__()
        self.partition = partition
        self.backend = backend
        self.f_key = two_layers(in_channels, key_channels, False, norm)
        self.f_query = two_layers(in_channels, key_channels, False, norm)
        self.f_value = nn.Conv2d(in_channels, value_channels, 1, bias=False)
        self.W = conv_abn(value_channels, out_channels, bias=False, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, out_channels, H, W)`` of features ``(N, C, H, W)``."""
        value: Tensor = self.f_value(x)
        query: Tensor = self.f_query(x)
        key: Tensor = self.f_key(x)
        context = partitioned_attention(query, key, value, self.partition, backend=self.backend)
        out: Tensor = self.W(context)
        return out

    def attention_rows(self, x: Tensor, points: Tensor) -> Tensor:
        """Return the weights ``(N, P, H, W)`` that chosen pixels give to the pixels of their groups."""
        query: Tensor = self.f_query(x)
        key: Tensor = self.f_key(x)
        return attention_rows(query, key, points, partition=self.partition)

    def extra_repr(self) -> str:
        """Return the settings that the sub-modules do not show."""
        return f"partition={self.partition}, backend={self.backend}"


class InterlacedContext(nn.Module):
    """Let every pixel reach every other in two steps: far pixels first, then near ones.

    With a factor ``(h, w)`` the first step attends among pixels with equal ``(row % h, column % w)``,
    the second within blocks of ``h x w``. Maps that blocks do not tile are padded with zeros, above and
    left by half of what is missing, rounded down, and the result is cropped. The padding comes before
    the transforms and has no mask, as published: it takes part in attention and in the statistics of
    the batch norms.

    Args:
        in_channels: Channels ``C`` of the input.
        key_channels: Channels of queries and keys, of both steps.
        value_channels: Channels of the values, of both steps.
        out_channels: Channels of the output, and between the steps.
        down_factor: ``(h, w)``, rows and columns of a block.
        backend: Back end of ``ocnet.ops.partitioned_attention``.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.

    Raises:
        ValueError: A factor below 1, or not two of them.

    Source: Huang et al., interlaced sparse self-attention (arXiv 1907.12273), section 3.2. Key names
    are those of the published code: ``long_range_sa.*``, ``short_range_sa.*``.
    """

    def __init__(
        self,
        in_channels: int,
        key_channels: int,
        value_channels: int,
        out_channels: int,
        down_factor: Sequence[int] = (8, 8),
        backend: str = "auto",
        norm: Norm = BATCHNORM,
    ) -> None:
        super().__init__()
        if len(down_factor) != 2:
            raise ValueError(
                f"InterlacedContext: down_factor must be two integers, got {tuple(down_factor)}"
            )
        h, w = (check_positive("InterlacedContext", "down_factor", each) for each in down_factor)
        self.down_factor = h, w
        widths = key_channels, value_channels, out_channels
        self.long_range_sa = SelfAttention(in_channels, *widths, Strided(h, w), backend, norm)
        self.short_range_sa = SelfAttention(out_channels, *widths, Blocks(h, w), backend, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, out_channels, H, W)`` of features ``(N, C, H, W)``."""
        return self._crop(self.short_range_sa(self.long_range_sa(self._pad(x))), x)

    def attention_rows(self, x: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights that chosen pixels give to others in each of the two steps.

        In training mode this moves the running statistics, as any evaluation of the transforms does.

        Args:
            x: Features ``(N, C, H, W)``.
            points: ``(P, 2)`` or ``(N, P, 2)``, integer, rows and columns in ``x``.

        Returns:
            Those of the long range, on ``x``, and of the short range, on the result of the long one.
            Each ``(N, P, H, W)``, zero outside the group. A map sums to 1, less what the padding, which
            is cropped, is given.

        Raises:
            TypeError: ``points`` are not integers.
            ValueError: ``points`` of another shape, or outside ``x``.
        """
        size = (x.shape[-2], x.shape[-1])
        points = rescale_points("InterlacedContext.attention_rows", points, size, size)
        points = points + torch.tensor(self._before(x), device=points.device)
        padded = self._pad(x)
        far = self.long_range_sa.attention_rows(padded, points)
        near = self.short_range_sa.attention_rows(self.long_range_sa(padded), points)
        return self._crop(far, x), self._crop(near, x)

    def extra_repr(self) -> str:
        """Return the settings that the sub-modules do not show."""
        return f"down_factor={self.down_factor}"

    def _missing(self, x: Tensor) -> tuple[int, int]:
        """Return the rows and columns that make whole blocks of a map."""
        h, w = self.down_factor
        return -x.shape[-2] % h, -x.shape[-1] % w

    def _before(self, x: Tensor) -> tuple[int, int]:
        """Return how many of the missing rows and columns come first."""
        rows, columns = self._missing(x)
        return rows // 2, columns // 2

    def _pad(self, x: Tensor) -> Tensor:
        rows, columns = self._missing(x)
        if rows == 0 and columns == 0:
            return x
        top, left = self._before(x)
        return F.pad(x, (left, columns - left, top, rows - top))

    def _crop(self, padded: Tensor, x: Tensor) -> Tensor:
        top, left = self._before(x)
        return padded[..., top : top + x.shape[-2], left : left + x.shape[-1]]


class ISA(nn.Module):
    """Join features and their interlaced context: ``dropout(ABN(conv1x1([x, context])))``.

    With several factors each has a block of its own, and the features are widened to the width of all
    contexts together first (``up_conv``). No convolution has a bias.

    Args:
        in_channels: Channels ``C`` of the input.
        out_channels: Channels of the output, and of each context.
        key_channels: Channels of queries and keys.
        value_channels: Channels of the values.
        dropout: Fraction of channels dropped in training.
        down_factors: ``(h, w)`` of each block.
        backend: Back end of ``ocnet.ops.partitioned_attention``.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.

    Raises:
        ValueError: No factors, or one that is not two integers of at least 1.

    Note:
        Contexts of several factors follow on the features in the order of the factors. The published
        networks have one factor.

    Source: Huang et al., interlaced sparse self-attention (arXiv 1907.12273). Key names are those of
    the published code: ``stages.{i}.long_range_sa.*``, ``.short_range_sa.*``; ``conv_bn.0``, ``.1``;
    ``up_conv.0``, ``.1``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        key_channels: int,
        value_channels: int,
        dropout: float = 0.05,
        down_factors: Sequence[Sequence[int]] = ((8, 8),),
        backend: str = "auto",
        norm: Norm = BATCHNORM,
    ) -> None:
        super().__init__()
        if len(down_factors) == 0:
            raise ValueError("ISA: down_factors must name at least one block, got none")
        self.stages = nn.ModuleList(
            InterlacedContext(
                in_channels, key_channels, value_channels, out_channels, factor, backend, norm
            )
            for factor in down_factors
        )
        width = len(down_factors) * out_channels
        self.up_conv: nn.Module | None = None
        if len(down_factors) > 1:
            self.up_conv = conv_abn(in_channels, width, bias=False, norm=norm)
        self.conv_bn = context_fusion(
            width + (in_channels if self.up_conv is None else width),
            out_channels,
            dropout,
            norm,
            bias=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, out_channels, H, W)`` of features ``(N, C, H, W)``."""
        features = x if self.up_conv is None else self.up_conv(x)
        contexts = [stage(x) for stage in self.stages]
        joined: Tensor = self.conv_bn(torch.cat([features, *contexts], dim=1))
        return joined

    def attention_rows(self, x: Tensor, points: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return :meth:`InterlacedContext.attention_rows` of every factor."""
        return [cast(InterlacedContext, stage).attention_rows(x, points) for stage in self.stages]
