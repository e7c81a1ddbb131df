# SPDX-License-Identifier: MIT
"""Helpers around ``torch.library`` shared by the ops."""

from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("ocnet", "FRAGMENT")
_AUTOCAST_DEVICES = (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA"))


def register_autocast(op_name: str) -> None:
    """Make ``ocnet::<op_name>`` run in the autocast dtype of its device.

    ``torch.library.register_autocast`` fixes one dtype when the op is registered; here the dtype is
    the one of the enclosing ``torch.autocast``, as for torch's own matrix products. As there,
    float64 is left alone.
    """
    op = getattr(torch.ops.ocnet, op_name).default
    for device_type, key_name in _AUTOCAST_DEVICES:
        kernel = _autocast_kernel(op, device_type, getattr(torch._C.DispatchKey, key_name))
        _LIBRARY.impl(op_name, kernel, key_name, with_keyset=True)


def _autocast_kernel(op: Any, device_type: str, dispatch_key: Any) -> Any:
    def cast(value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, list):
            return [cast(item, dtype) for item in value]
        eligible = (
            isinstance(value, Tensor)
            and value.is_floating_point()
            and value.device.type == device_type
            and value.dtype != torch.float64
        )
        return value.to(dtype) if eligible else value

    def kernel(_keyset: Any, *args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(dispatch_key)):
            return op(*(cast(arg, dtype) for arg in args))

    return kernel
