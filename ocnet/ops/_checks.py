# SPDX-License-Identifier: MIT
"""Argument checks shared by the ops. Each message: ``<function>: <argument> must ..., got ...``."""

from typing import Any

import torch
from torch import Tensor


def shape_of(tensor: Tensor) -> str:
    """Return a tensor's shape as text, symbolic sizes included."""
    return "(" + ", ".join(str(size) for size in tensor.shape) + ")"


def check_map(function: str, name: str, value: Any, dtypes: tuple[torch.dtype, ...]) -> None:
    """Check that an argument is a non-empty map ``(N, C, H, W)`` of an allowed dtype.

    A batch of zero images is legal; a map without channels, rows or columns is not.

    Raises:
        TypeError: Not a tensor, or of another dtype.
        ValueError: Not four-dimensional, or empty.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(
            f"{function}: {name} must be one of {allowed}, "
            f"got {str(value.dtype).removeprefix('torch.')}"
        )
    if value.dim() != 4:
        raise ValueError(f"{function}: {name} must have shape (N, C, H, W), got {shape_of(value)}")
    if value.shape[1] == 0 or value.shape[2] == 0 or value.shape[3] == 0:
        raise ValueError(
            f"{function}: {name} must have at least one channel, row and column, "
            f"got {shape_of(value)}"
        )


def check_same(function: str, name: str, attribute: str, value: Any, other: str, want: Any) -> None:
    """Check that ``name`` has the same attribute (``device``, ``dtype``) as ``other``.

    Raises:
        TypeError: For ``dtype``.
        ValueError: For anything else.
    """
    if value != want:
        error = TypeError if attribute == "dtype" else ValueError
        raise error(f"{function}: {name} must have the {attribute} of {other}, {want}, got {value}")


def check_keys(function: str, query: Any, key: Any, dtypes: tuple[torch.dtype, ...]) -> None:
    """Check that query and key are maps whose pixels can be compared.

    Raises:
        TypeError: Not tensors, not of an allowed dtype, or of two dtypes.
        ValueError: Rank, device, batch or channels do not fit.
    """
    for name, pixels in (("query", query), ("key", key)):
        check_map(function, name, pixels, dtypes)
    check_same(function, "key", "device", key.device, "query", query.device)
    check_same(function, "key", "dtype", key.dtype, "query", query.dtype)
    n, e = query.shape[:2]
    if key.shape[0] != n or key.shape[1] != e:
        raise ValueError(
            f"{function}: key must have the batch size and channels of query, {n} and {e}, "
            f"got {shape_of(key)}"
        )


def check_integers(function: str, name: str, value: Any) -> None:
    """Check that an argument is a tensor of integers.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a tensor, got {type(value).__name__}")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{function}: {name} must be integers, got {value.dtype}")


def check_attention(
    function: str,
    query: Any,
    key: Any,
    value: Any,
    scale: Any,
    dtypes: tuple[torch.dtype, ...],
    prefix: str = "",
) -> None:
    """Check the maps and the scale of a call of attention.

    Args:
        function: Name of the op.
        query: ``(N, E, H, W)``.
        key: ``(N, E, Hk, Wk)``.
        value: ``(N, Ev, Hk, Wk)``.
        scale: Factor of the scores, or ``None``.
        dtypes: Those allowed.
        prefix: What stands before the names of the maps, as in ``stages[1].``.

    Raises:
        TypeError: Not tensors, dtypes that are not allowed or differ, or a scale that is a tensor.
        ValueError: Rank, device, batch, channels, rows or columns do not fit, or a map is empty.
    """
    names = [prefix + name for name in ("query", "key", "value")]
    for name, pixels in zip(names, (query, key, value), strict=True):
        check_map(function, name, pixels, dtypes)
    for name, pixels in zip(names[1:], (key, value), strict=True):
        check_same(function, name, "device", pixels.device, names[0], query.device)
        # Autocast brings all three to one dtype.
        if not autocasts(query.device.type):
            check_same(function, name, "dtype", pixels.dtype, names[0], query.dtype)
        if pixels.shape[0] != query.shape[0]:
            raise ValueError(
                f"{function}: {name} must have the batch size of {names[0]}, {query.shape[0]}, "
                f"got {shape_of(pixels)}"
            )
    if key.shape[1] != query.shape[1]:
        raise ValueError(
            f"{function}: {names[1]} must have the channels of {names[0]}, {query.shape[1]}, "
            f"got {shape_of(key)}"
        )
    if value.shape[2] != key.shape[2] or value.shape[3] != key.shape[3]:
        raise ValueError(
            f"{function}: {names[2]} must have the rows and columns of {names[1]}, {key.shape[2]} x "
            f"{key.shape[3]}, got {shape_of(value)}"
        )
    if scale is not None and isinstance(scale, Tensor):
        raise TypeError(f"{function}: scale must be a number, got a tensor")


def autocasts(device_type: str) -> bool:
    """Tell whether ops on such a device run in the autocast dtype."""
    # Asking of a device that has no autocast (meta) is an error in torch.
    known = torch.amp.is_autocast_available(device_type)
    return known and torch.is_autocast_enabled(device_type)
