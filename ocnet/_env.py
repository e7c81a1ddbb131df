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


def launched() -> tuple[int, int, int] | None:
    """Return what ``torchrun`` says: rank, number of processes, rank on this machine; else ``None``."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    rank = int(os.environ["RANK"])
    return rank, int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", rank))
