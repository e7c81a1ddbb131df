# SPDX-License-Identifier: MIT
"""The only reader of environment variables; docs/environment.md lists them."""

import os


def triton_interpreted() -> bool:
    """Tell whether Triton kernels run in Triton's interpreter (``TRITON_INTERPRET=1``)."""
    # The spellings that Triton itself takes for yes.
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "y", "yes", "true", "on")


def data_root() -> str | None:
    """Return ``OCNET_DATA_ROOT``, the folder that relative data paths start from, if it is set."""
    return os.environ.get("OCNET_DATA_ROOT")
