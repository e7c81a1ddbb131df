# SPDX-License-Identifier: MIT
"""Losses on logits at feature resolution."""

from ocnet.losses.cross_entropy import cross_entropy
from ocnet.losses.dsn import DSNLoss

__all__ = ["DSNLoss", "cross_entropy"]
