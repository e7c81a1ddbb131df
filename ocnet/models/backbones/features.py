# SPDX-License-Identifier: MIT
"""What a backbone returns."""

from typing import NamedTuple

from torch import Tensor


class Features(NamedTuple):
    """Two feature maps of one backbone.

    Attributes:
        aux: ``(N, aux_channels, h, w)``, an earlier layer, for the auxiliary head.
        out: ``(N, out_channels, h, w)``, the last layer.
    """

    aux: Tensor
    out: Tensor
