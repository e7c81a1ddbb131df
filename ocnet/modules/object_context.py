# SPDX-License-Identifier: MIT
"""The self-attention block of OCNet."""

from collections.abc import MutableMapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocnet.modules._checks import check_positive
from ocnet.modules._transforms import key_transform, output_transform
from ocnet.modules.points import rescale_points
from ocnet.ops import attention_rows, oc_attention
from ocnet.ops._checks import shape_of


class ObjectContext(nn.Module):
    """Give each pixel the values of all pixels, weighted by likeness: its object context.

    ``W(softmax(E ** -0.5 * <f_key(x), f_key(x)>) f_value(x))``: queries and keys share one
    transform, which is computed once. With ``scale > 1`` the map is max-pooled first, and the
    result is resized back bilinearly with ``align_corners=True``. ``W`` is zero at the start, and
    so is the output.

    Args:
        in_channels: Channels ``C`` of the input.
        key_channels: Channels ``E`` of queries and keys.
        value_channels: Channels ``Ev`` of the values.
        out_channels: Channels of the output; ``in_channels`` when absent.
        scale: Edge of the max-pooling window, in pixels; 1 for none.
        backend: Back end of ``ocnet.ops.oc_attention``.

    Note:
        The batch norm of ``f_key`` has momentum 0.19. The published code evaluates the shared
        transform twice in a training step, which moves the running statistics twice by 0.1 of the
        same batch statistics: ``1 - 0.9 ** 2``. State dicts of that code name the transform twice;
        equal ``f_query.*`` keys are dropped, and stand in for absent ``f_key.*`` keys.

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
    ) -> None:
        super().__init__()
        self.scale = check_positive("ObjectContext", "scale", scale)
        self.backend = backend
        self.f_key = key_transform(in_channels, key_channels)
        self.f_value = nn.Conv2d(in_channels, value_channels, 1)
        self.W = output_transform(
            value_channels, in_channels if out_channels is None else out_channels
        )

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

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        error_msgs.extend(fold_shared_query(state_dict, prefix))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def fold_shared_query(state_dict: MutableMapping[str, Any], prefix: str) -> list[str]:
    """Fold the ``f_query`` keys of one block into its ``f_key`` keys, in place.

    Args:
        state_dict: State dict, changed: every ``<prefix>f_query.*`` goes, or takes the place of an
            absent ``<prefix>f_key.*``.
        prefix: Name of the block with its dot, as in ``"context.2.stages.0."``.

    Returns:
        One sentence for each query tensor that differs from its key twin.
    """
    complaints = []
    start = prefix + "f_query."
    for name in [name for name in state_dict if name.startswith(start)]:
        query = state_dict.pop(name)
        twin = prefix + "f_key." + name.removeprefix(start)
        key = state_dict.setdefault(twin, query)
        if query.shape != key.shape or not torch.equal(query.to(key), key):
            complaints.append(
                f"ObjectContext: {name} must equal {twin}, because queries and keys share one "
                "transform here; the file comes from a network with two"
            )
    return complaints
