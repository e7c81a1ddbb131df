# SPDX-License-Identifier: MIT
"""The C++ CPU back end: fixed-size tiles, threads, extra memory linear in the tokens."""

from ocnet.ops.oc_attention.native import NativeBackend

_BACKEND = NativeBackend("cpu")
supports, forward, backward = _BACKEND.supports, _BACKEND.forward, _BACKEND.backward
