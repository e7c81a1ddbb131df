# SPDX-License-Identifier: MIT
"""The self-attention block of OCNet."""

import torch.nn.functional as F
from torch import Tensor

from ocnet.modules._checks import check_positive
from ocnet.modules.attention_transforms import AttentionTransforms
from ocnet.modules.norms import BATCHNORM, Norm
from ocnet.modules.points import rescale_points
from ocnet.ops import attention_rows, oc_attention


class ObjectContext(AttentionTransforms):
    """Give each pixel the values of all pixels, weighted by likeness: its object context.

    ``W(softmax(E ** -0.5 * <f_query(x), f_key(x)>) f_value(x))``. By default queries and keys share
    one transform, which is computed once, see ``AttentionTransforms``. With ``scale > 1`` the map is
    max-pooled first, and the result is resized back bilinearly with ``align_corners=True``. ``W``
    is zero at the start, and so is the output.

    Args:
        in_channels: Channels ``C`` of the input.
        key_channels: Channels ``E`` of queries and keys.
        value_channels: Channels ``Ev`` of the values.
        out_channels: Channels of the output; ``in_channels`` when absent.
        scale: Edge of the max-pooling window, in pixels; 1 for none.
        backend: Back end of ``ocnet.ops.oc_attention``.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.
        shared: Queries and keys share one transform, as in OCNet's code; otherwise each has two layers of
            its own, as in openseg's.

    Source: Yuan and Wang, OCNet (arXiv 1809.00916), object context pooling.
    """

    def __init__(
        self,
        in_channels: int,
        key_channels: int,
        value_channels: int,
        out_channels: int | None = None,
        scale: int = 1,
        backend: str = "auto",
        norm: Norm = BATCHNORM,
        shared: bool = True,
    ) -> None:
        if out_channels is None:
            out_channels = in_channels
        super().__init__(in_channels, key_channels, value_channels, out_channels, norm, shared)
        self.scale = check_positive("ObjectContext", "scale", scale)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """Return the object context of every pixel.

        Args:
            x: Features ``(N, C, H, W)``.

        Returns:
            ``(N, out_channels, H, W)``.
        """
        pooled = self._pool(x)
        value: Tensor = self.f_value(pooled)
        query, key = self.query_and_key(pooled)
        context: Tensor = self.W(oc_attention(query, key, value, backend=self.backend))
        if self.scale > 1:
            context = F.interpolate(context, size=x.shape[-2:], mode="bilinear", align_corners=True)
        return context

    def attention_rows(self, x: Tensor, points: Tensor) -> Tensor:
        """Return the weights that chosen pixels give to all pixels.

        In training mode this moves the running statistics, as any evaluation of the transforms does.

        Args:
            x: Features ``(N, C, H, W)``.
            points: ``(P, 2)`` or ``(N, P, 2)``, integer, rows and columns in ``x``. With
                ``scale > 1`` the nearest pixel of the pooled map is taken.

        Returns:
            ``(N, P, H // scale, W // scale)``, at least one row and column; each map sums to 1.

        Raises:
            TypeError: ``points`` are not integers.
            ValueError: ``points`` of another shape, or outside ``x``.
        """
        pooled = self._pool(x)
        points = rescale_points(
            "ObjectContext.attention_rows",
            points,
            (x.shape[-2], x.shape[-1]),
            (pooled.shape[-2], pooled.shape[-1]),
        )
        query, key = self.query_and_key(pooled)
        return attention_rows(query, key, points.to(key.device))

    def extra_repr(self) -> str:
        """Return the settings that the sub-modules do not show."""
        return f"scale={self.scale}, backend={self.backend}"

    def _pool(self, x: Tensor) -> Tensor:
        if self.scale == 1:
            return x
        # Of maps with fewer rows or columns than a window, one is left.
        window = [min(self.scale, size) for size in x.shape[-2:]]
        return F.max_pool2d(x, window)
