# SPDX-License-Identifier: MIT
"""Object-contextual representations: pixels attend to the features of soft class regions."""

import torch
from torch import Tensor, nn

from ocnet.modules._transforms import context_fusion, conv_abn, two_layers
from ocnet.modules.norms import BATCHNORM, Norm
from ocnet.ops import oc_attention, spatial_gather


class SpatialGather(nn.Module):
    """Gather one feature for each class: the mean over its soft region, ``ocnet.ops.spatial_gather``.

    Args:
        scale: Factor of the logits.
        backend: Back end of the op.

    Source: Yuan, Chen, Wang, OCR (arXiv 1909.11065), equation 2. There are no parameters.
    """

    def __init__(self, scale: float = 1.0, backend: str = "auto") -> None:
        super().__init__()
        self.scale = scale
        self.backend = backend

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        """Return the regions ``(N, C, K, 1)`` of features ``(N, C, H, W)`` and logits ``(N, K, H, W)``."""
        return spatial_gather(x, logits, self.scale, backend=self.backend)

    def regions(self, logits: Tensor) -> Tensor:
        """Return the soft regions ``(N, K, H, W)``: how much each pixel counts; each map sums to 1."""
        weights = torch.softmax(self.scale * logits.float().flatten(2), dim=-1)
        return weights.reshape(logits.shape)

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"scale={self.scale}, backend={self.backend}"


class ObjectAttention(nn.Module):
    """Give each pixel the features of the regions, weighted by likeness.

    ``f_up(softmax(E ** -0.5 * <f_pixel(x), f_object(r)>) f_down(r))`` over the ``K`` regions ``r``.

    Args:
        channels: Channels ``C`` of features, regions and output.
        key_channels: Channels of queries, keys and values.
        bias: Whether convolutions have biases.
        backend: Back end of ``ocnet.ops.oc_attention``.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.

    Source: Yuan, Chen, Wang, OCR (arXiv 1909.11065), equation 3. Key names are those of the published
    codes: ``f_pixel.0`` to ``.3``, ``f_object.0`` to ``.3``, ``f_down.0``, ``.1``, ``f_up.0``, ``.1``.
    Biases are openseg's; the HRNet repository has none.
    """

    def __init__(
        self,
        channels: int,
        key_channels: int,
        bias: bool = True,
        backend: str = "auto",
        norm: Norm = BATCHNORM,
    ) -> None:
        super().__init__()
        self.backend = backend
        self.f_pixel = two_layers(channels, key_channels, bias, norm)
        self.f_object = two_layers(channels, key_channels, bias, norm)
        self.f_down = conv_abn(channels, key_channels, bias, norm)
        self.f_up = conv_abn(key_channels, channels, bias, norm)

    def forward(self, x: Tensor, regions: Tensor) -> Tensor:
        """Return ``(N, C, H, W)`` of features ``(N, C, H, W)`` and regions ``(N, C, K, 1)``."""
        query: Tensor = self.f_pixel(x)
        key: Tensor = self.f_object(regions)
        value: Tensor = self.f_down(regions)
        context: Tensor = self.f_up(oc_attention(query, key, value, backend=self.backend))
        return context

    def extra_repr(self) -> str:
        """Return the settings that the sub-modules do not show."""
        return f"backend={self.backend}"


class OCRContext(nn.Module):
    """``ObjectAttention`` under its published name, ``object_context_block``.

    Args:
        channels: As ``ObjectAttention``.
        key_channels: Likewise.
        bias: Likewise.
        backend: Likewise.
        norm: Likewise.
    """

    def __init__(
        self,
        channels: int,
        key_channels: int,
        bias: bool = True,
        backend: str = "auto",
        norm: Norm = BATCHNORM,
    ) -> None:
        super().__init__()
        self.object_context_block = ObjectAttention(channels, key_channels, bias, backend, norm)

    def forward(self, x: Tensor, regions: Tensor) -> Tensor:
        """Return the context ``(N, C, H, W)`` of features and regions ``(N, C, K, 1)``."""
        context: Tensor = self.object_context_block(x, regions)
        return context


class OCR(OCRContext):
    """Join features and their object context: ``dropout(ABN(conv1x1([context, x])))``.

    Args:
        channels: Channels ``C`` of features and regions.
        key_channels: Channels of queries, keys and values.
        out_channels: Channels of the output; ``channels`` by default.
        dropout: Fraction of channels dropped in training.
        bias: Whether convolutions have biases.
        backend: Back end of ``ocnet.ops.oc_attention``.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.

    Source: Yuan, Chen, Wang, OCR (arXiv 1909.11065). Key names are those of the published codes:
    ``object_context_block.*``, ``conv_bn_dropout.0``, ``.1``.
    """

    def __init__(
        self,
        channels: int,
        key_channels: int,
        out_channels: int | None = None,
        dropout: float = 0.05,
        bias: bool = True,
        backend: str = "auto",
        norm: Norm = BATCHNORM,
    ) -> None:
        super().__init__(channels, key_channels, bias, backend, norm)
        out = channels if out_channels is None else out_channels
        self.conv_bn_dropout = context_fusion(2 * channels, out, dropout, norm, bias)

    def forward(self, x: Tensor, regions: Tensor) -> Tensor:
        """Return ``(N, out_channels, H, W)`` of features ``(N, C, H, W)`` and regions ``(N, C, K, 1)``."""
        context = super().forward(x, regions)
        joined: Tensor = self.conv_bn_dropout(torch.cat([context, x], dim=1))
        return joined
