# SPDX-License-Identifier: MIT
"""Weights that this package writes: safetensors, with what is needed to know what they are."""

import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ocnet.models.key_names import unwrapped
from ocnet.modules import ABN, InPlaceABN

# Metadata of a file, and its values.
SCALE_KEY, _SIGNED, MAGNITUDES = "norm_scale", "signed", "magnitudes"
_NAMED = 8


def save_weights(
    model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str]
) -> None:
    """Write the parameters and buffers of a network to a safetensors file.

    The file appears under its name only when it is whole. Wrapper prefixes (``module.``) are
    stripped. ``ocnet.models.load_checkpoint`` reads it.

    Args:
        model: The network.
        path: File to write; its folder must exist.
        metadata: Texts by name, kept in the file; ``read_metadata`` returns them.

    Raises:
        TypeError: ``metadata`` has something other than text.
    """
    for name, text in metadata.items():
        if not (isinstance(name, str) and isinstance(text, str)):
            raise TypeError(f"save_weights: metadata must map text to text, got {name!r}: {text!r}")
    # Contiguous copies: the format keeps no strides, and no storage shared between names.
    state = {
        unwrapped(name): value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        safetensors.torch.save_file(state, partial, metadata=dict(metadata))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata of a safetensors file, without its tensors."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata: dict[str, str] | None = file.metadata()
    return {} if metadata is None else metadata


def scale_kind(model: nn.Module) -> str:
    """Return how the norms of a network read the sign of a weight: they use it, or its magnitude."""
    by_magnitude = (
        isinstance(m, InPlaceABN) and m.scale_mode == "abs_eps" for m in model.modules()
    )
    return MAGNITUDES if any(by_magnitude) else _SIGNED


def check_scales(
    source: str, model: nn.Module, state: Mapping[str, Tensor], kind: str | None
) -> None:
    """Refuse negative weights of norms for a network that reads their sign in another way.

    Args:
        source: Where the weights come from, in words.
        model: The network.
        state: The weights.
        kind: How the network that they were trained in reads them, as :func:`scale_kind` says; ``None`` if
            that is not known.

    Raises:
        ValueError: There are some.
    """
    if kind is None or kind == scale_kind(model):
        return
    own = [unwrapped(n) for n, m in model.named_modules() if isinstance(m, ABN)]
    given = {unwrapped(name): value for name, value in state.items()}
    names = [n for n in own if bool((given.get(f"{n}.weight", torch.zeros(1)) < 0).any())]
    if names:
        raise ValueError(
            f"load_checkpoint: source must have no negative weights of norms for a network that reads "
            f"them as {scale_kind(model)}, got {source}, saved by one that reads them as {kind}, with "
            f"some in {', '.join(names[:_NAMED])}; build the network with the norm it was trained with"
        )
