# SPDX-License-Identifier: MIT
"""Features of regions: a softmax over positions, and the weighted sum of the features there."""

from ocnet.ops.spatial_gather import flops, sharding
from ocnet.ops.spatial_gather.functional import spatial_gather

__all__ = ["flops", "sharding", "spatial_gather"]
