# SPDX-License-Identifier: MIT
"""The C++ CPU back end: tiles of positions, threads, sums of fixed parts in a fixed order."""

from ocnet.ops._native import NativeBackend
from ocnet.ops.spatial_gather.problem import refuse_common

_BACKEND = NativeBackend("spatial_gather", "cpu", refuse_common)
supports, forward, backward = _BACKEND.supports, _BACKEND.forward, _BACKEND.backward
