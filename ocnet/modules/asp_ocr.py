# SPDX-License-Identifier: MIT
"""The ASP-OCR module: object-contextual representations beside dilated convolutions."""

from collections.abc import Sequence

from torch import Tensor, nn

from ocnet.modules._transforms import conv_abn
from ocnet.modules.dilated_branches import DilatedBranches
from ocnet.modules.norms import BATCHNORM, Norm
from ocnet.modules.ocr import OCRContext, SpatialGather


class ASPOCR(DilatedBranches):
    """Join the context of soft class regions and dilated branches, see ``DilatedBranches``.

    The branch of context is a 3x3 convolution and ``ABN``, of whose result the regions are gathered, and
    ``OCRContext``. All convolutions have biases.

    Args:
        in_channels: Channels ``C`` of the input.
        channels: Channels of each branch.
        out_channels: Channels of the output; ``channels`` by default.
        key_channels: Channels of queries, keys and values; half of ``channels`` by default.
        dilations: Of the three dilated branches.
        dropout: Fraction of channels dropped in training.
        backend: Back end of ``ocnet.ops.spatial_gather`` and ``oc_attention``.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.

    Raises:
        ValueError: Not three dilations of at least 1.

    Source: openseg's code of OCR (arXiv 1909.11065), with its key names.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 256,
        out_channels: int | None = None,
        key_channels: int | None = None,
        dilations: Sequence[int] = (12, 24, 36),
        dropout: float = 0.1,
        backend: str = "auto",
        norm: Norm = BATCHNORM,
    ) -> None:
        key = max(1, channels // 2) if key_channels is None else key_channels
        out = channels if out_channels is None else out_channels
        context = nn.Sequential(
            *conv_abn(in_channels, channels, True, norm, 3),
            OCRContext(channels, key, True, backend, norm),
        )
        super().__init__(context, in_channels, channels, out, dilations, dropout, True, norm)
        self.gather = SpatialGather(backend=backend)

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        """Return ``(N, out_channels, H, W)`` of features ``(N, C, H, W)`` and logits ``(N, K, H, W)``."""
        features: Tensor = self.context[1](self.context[0](x))
        context: Tensor = self.context[2](features, self.gather(features, logits))
        return self.join(context, x)
