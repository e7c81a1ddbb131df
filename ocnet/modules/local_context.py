# SPDX-License-Identifier: MIT
"""The local control of the object-context block."""

import torch.nn.functional as F
from torch import Tensor, nn

from ocnet.modules._checks import check_positive
from ocnet.modules._transforms import key_transform, output_transform
from ocnet.modules.norms import BATCHNORM, Norm


class LocalContext(nn.Module):
    """Give each pixel a mean over its window: ``ObjectContext`` without attention.

    ``W(avg_pool(f_key(x) * f_value(x)))`` with stride 1 and zero padding: the same transforms,
    names and start, so a difference in results is the reach of attention and not the size of the
    network.

    Args:
        in_channels: Channels ``C`` of the input.
        key_channels: Channels of ``f_key``.
        value_channels: Channels of ``f_value``; must equal ``key_channels``, because the two are
            multiplied.
        out_channels: Channels of the output; ``in_channels`` when absent.
        window: Edge of the window, in pixels; odd.
        norm: Batch norm, called as ``norm(channels)``; see ``ocnet.modules.norm_layer``.

    Raises:
        ValueError: Unequal channels of key and value, or an even window.
    """

    def __init__(
        self,
        in_channels: int,
        key_channels: int,
        value_channels: int,
        out_channels: int | None = None,
        window: int = 5,
        norm: Norm = BATCHNORM,
    ) -> None:
        super().__init__()
        if key_channels != value_channels:
            raise ValueError(
                f"LocalContext: value_channels must equal key_channels, {key_channels}, because "
                f"the two maps are multiplied, got {value_channels}"
            )
        if check_positive("LocalContext", "window", window) % 2 == 0:
            raise ValueError(f"LocalContext: window must be odd, got {window}")
        self.window = window
        self.f_key = key_transform(in_channels, key_channels, norm)
        self.f_value = nn.Conv2d(in_channels, value_channels, 1)
        self.W = output_transform(
            value_channels, in_channels if out_channels is None else out_channels
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the local context ``(N, out_channels, H, W)`` of features ``(N, C, H, W)``."""
        product: Tensor = self.f_key(x) * self.f_value(x)
        context: Tensor = self.W(
            F.avg_pool2d(product, self.window, stride=1, padding=self.window // 2)
        )
        return context

    def extra_repr(self) -> str:
        """Return the settings that the sub-modules do not show."""
        return f"window={self.window}"
