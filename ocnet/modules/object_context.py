# SPDX-License-Identifier: MIT
"""The self-attention block of OCNet."""

import torch.nn.functional as F
from torch import Tensor

from ocnet.modules._checks import check_positive
from ocnet.modules.norms import BATCHNORM, Norm
from ocnet.modules.points import rescale_points
from ocnet.modules.shared_transforms import SharedTransforms
from ocnet.ops import attention_rows, oc_attention
from ocnet.ops._checks import shape_of


class ObjectContext(SharedTransforms):
    """Give each pixel the values of all pixels, weighted by likeness: its object context.

    ``W(softmax(E ** -0.5 * <f_key(x), f_key(x)>) f_value(x))``: queries and keys share one
    transform, which is computed once, see ``SharedTransforms``. With ``scale > 1`` the map is
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

    Source: Yuan and Wang, OCNet (arXiv 1809.00916), object context pooling with a shared transform.
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
    ) -> None:
        if out_channels is None:
            out_channels = in_channels
        super().__init__(in_channels, key_channels, value_channels, out_channels, norm)
        self.scale = check_positive("ObjectContext", "scale", scale)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """Return the object context of every pixel.

        Args:
            x: Features ``(N, C, H, W)``, with ``H`` and ``W`` of at least ``scale``.

        Returns:
            ``(N, out_channels, H, W)``.

        Raises:
            ValueError: ``x`` is smaller than one pooling window.
        """
        pooled = self._pool(x)
        value: Tensor = self.f_value(pooled)
        key: Tensor = self.f_key(pooled)
        context: Tensor = self.W(oc_attention(key, key, value, backend=self.backend))
        if self.scale > 1:
            context = F.interpolate(context, size=x.shape[-2:], mode="bilinear", align_corners=True)
        return context

    def attention_rows(self, x: Tensor, points: Tensor) -> Tensor:
        """Return the weights that chosen pixels give to all pixels.

        In training mode this moves the running statistics, as any evaluation of ``f_key`` does.

        Args:
            x: Features ``(N, C, H, W)``.
            points: ``(P, 2)`` or ``(N, P, 2)``, integer, rows and columns in ``x``. With
                ``scale > 1`` the nearest pixel of the pooled map is taken.

        Returns:
            ``(N, P, H // scale, W // scale)``; each map sums to 1.

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
        key: Tensor = self.f_key(pooled)
        return attention_rows(key, key, points.to(key.device))

    def extra_repr(self) -> str:
        """Return the settings that the sub-modules do not show."""
        return f"scale={self.scale}, backend={self.backend}"

    def _pool(self, x: Tensor) -> Tensor:
        if self.scale == 1:
            return x
        if x.shape[-2] < self.scale or x.shape[-1] < self.scale:
            raise ValueError(
                f"ObjectContext: x must have at least {self.scale} rows and columns, the pooling "
                f"window, got {shape_of(x)}"
            )
        return F.max_pool2d(x, self.scale)
