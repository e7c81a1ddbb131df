# SPDX-License-Identifier: MIT
"""Training state on disk: written whole or not at all, and restored to the bit."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch


def save_training_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state so that ``path`` is always a whole file, old or new.

    Args:
        path: file to write; its folder must exist.
        state: tensors, numbers, strings, and dicts and lists of them.
    """
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        # The rename may reach the disk before the bytes do.
        os.fsync(file.fileno())
    partial.replace(path)


def load_training_state(path: Path) -> dict[str, Any]:
    """Read a training state, on the CPU, without running code from the file.

    Args:
        path: file that :func:`save_training_state` wrote.

    Returns:
        The state.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a training state.
    """
    if not path.is_file():
        raise FileNotFoundError(f"load_training_state: path must name a file, got {path}")
    try:
        # A file that was cut is no zip archive any more; torch would try older formats on it.
        if not zipfile.is_zipfile(path):
            raise pickle.UnpicklingError("not a zip archive")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(
            f"load_training_state: path must name a checkpoint of ocnet train, got {path}, "
            f"which is damaged or something else"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(
            f"load_training_state: path must name a checkpoint of ocnet train, got {path}, "
            f"which holds {type(state).__name__}"
        )
    return state


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return torch's global random state.

    Args:
        device: device of the training; its generator is included if it is a GPU.

    Returns:
        ``cpu`` and perhaps ``cuda``, uint8 each.
    """
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Set torch's global random state.

    Args:
        state: what :func:`random_state` returned.
        device: device of the training. A state from another kind of device leaves the GPU's
            generator as it is.
    """
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
