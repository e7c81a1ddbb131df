# SPDX-License-Identifier: MIT
"""Checks of constructor arguments. Each message: ``<function>: <argument> must ..., got ...``."""

from typing import Any


def check_positive(function: str, name: str, value: Any) -> int:
    """Check that an argument is an integer of at least 1, and return it.

    Raises:
        TypeError: Not an integer.
        ValueError: Below 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{function}: {name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{function}: {name} must be at least 1, got {value}")
    return value
