# SPDX-License-Identifier: MIT
"""Weights in files: safetensors, with a report when file and network do not fit."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ocnet.modules import ABN, InPlaceABN
from ocnet.modules.shared_transforms import SharedTransforms, fold_shared_query

# Left by DistributedDataParallel and by torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")
# The published networks are flat; theirs are the names of one part of a Segmentor each.
_PARTS = ("backbone.", "head.", "aux_head.")
_LINES = 8
# Metadata of a file, and its values.
SCALE_KEY, _SIGNED, _MAGNITUDE = "norm_scale", "signed", "magnitudes"


@dataclass(frozen=True)
class LoadReport:
    """How the names of a state dict fit those of a network.

    Attributes:
        missing: Names that only the network has.
        unexpected: Names that only the file has.
        mismatched: Names of both, with the shapes in the file and in the network.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def ok(self) -> bool:
        """Whether everything fits."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        """Return the report as text, a few names of each kind."""
        if self.ok:
            return "all names and shapes fit"
        shapes = [f"{name} (file {got}, network {want})" for name, got, want in self.mismatched]
        kinds = (
            ("missing in the file", list(self.missing)),
            ("not in the network", list(self.unexpected)),
            ("of another shape", shapes),
        )
        lines = []
        for kind, names in kinds:
            if names:
                lines.append(f"{len(names)} {kind}:")
                lines += [f"  {name}" for name in names[:_LINES]]
                if len(names) > _LINES:
                    lines.append(f"  and {len(names) - _LINES} more")
        return "\n".join(lines)


def save_weights(
    model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str]
) -> None:
    """Write the parameters and buffers of a network to a safetensors file.

    The file appears under its name only when it is whole. Wrapper prefixes (``module.``) are
    stripped.

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
        _unwrapped(name): value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        safetensors.torch.save_file(state, partial, metadata=dict(metadata))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_weights(model: nn.Module, path: str | os.PathLike[str], strict: bool = True) -> LoadReport:
    """Read the parameters and buffers of a network from a safetensors file.

    Args:
        model: The network, changed in place.
        path: File that ``save_weights`` wrote, or any safetensors file of named tensors.
        strict: Every name must fit. Otherwise what fits is loaded, and the report says what did
            not.

    Returns:
        The report.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a safetensors file, or it does not fit; the network is as before then.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"load_weights: path must name a file, got {os.fspath(path)}")
    try:
        state = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"load_weights: path must name a safetensors file, got {os.fspath(path)} ({error})"
        ) from error
    _check_scales(os.fspath(path), model, state, read_metadata(path).get(SCALE_KEY))
    return _load("load_weights: path", os.fspath(path), model, state, strict)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata of a safetensors file, without its tensors."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata: dict[str, str] | None = file.metadata()
    return {} if metadata is None else metadata


def load_state(model: nn.Module, state: Mapping[str, Tensor], strict: bool = True) -> LoadReport:
    """Copy a state dict into a network, whatever wrapper or published code it comes from.

    Wrapper prefixes are stripped, and ``num_batches_tracked`` may be absent on either side. Names
    of the published flat networks (``conv1.weight``, ``context.0.weight``, ``dsn.0.weight``) find
    their part of a ``Segmentor``, and the second name of a shared query and key transform is
    dropped if the two are equal.

    Args:
        model: The network, changed in place.
        state: Tensors by name.
        strict: Every name must fit. Otherwise what fits is loaded.

    Returns:
        The report.

    Raises:
        ValueError: It does not fit; the network is as before then.
    """
    return _load("load_state: state", "state dict", model, state, strict)


def _load(
    argument: str, source: str, model: nn.Module, state: Mapping[str, Tensor], strict: bool
) -> LoadReport:
    own = {_unwrapped(name): value for name, value in model.state_dict().items()}
    given = {_owned(_unwrapped(name), own): value for name, value in state.items()}
    given = {name: value for name, value in given.items() if name in own or not _is_counter(name)}
    complaints = []
    for name, module in model.named_modules():
        if isinstance(module, SharedTransforms):
            complaints += fold_shared_query(given, _unwrapped(f"{name}.") if name else "")
    if complaints:
        raise ValueError(f"{argument} must fit the network, got {source}\n" + "\n".join(complaints))

    shared = [name for name in own if name in given]
    mismatched = [name for name in shared if own[name].shape != given[name].shape]
    report = LoadReport(
        missing=tuple(name for name in own if name not in given and not _is_counter(name)),
        unexpected=tuple(name for name in given if name not in own),
        mismatched=tuple((n, tuple(given[n].shape), tuple(own[n].shape)) for n in mismatched),
    )
    if strict and not report.ok:
        raise ValueError(
            f"{argument} must fit the network, got {source} with {len(given)} tensors for "
            f"{len(own)}\n{report}"
        )
    with torch.no_grad():
        for name in shared:
            if name not in mismatched:
                own[name].copy_(given[name])
    return report


def scale_kind(model: nn.Module) -> str:
    """Return how the norms of a network read the sign of a weight: they use it, or its magnitude."""
    by_magnitude = (
        isinstance(m, InPlaceABN) and m.scale_mode == "abs_eps" for m in model.modules()
    )
    return _MAGNITUDE if any(by_magnitude) else _SIGNED


def _check_scales(
    source: str, model: nn.Module, state: Mapping[str, Tensor], kind: str | None
) -> None:
    """Refuse negative weights of norms for a network that reads their sign in another way."""
    if kind is None or kind == scale_kind(model):
        return
    own = [_unwrapped(n) for n, m in model.named_modules() if isinstance(m, ABN)]
    given = {_unwrapped(name): value for name, value in state.items()}
    names = [n for n in own if bool((given.get(f"{n}.weight", torch.zeros(1)) < 0).any())]
    if names:
        raise ValueError(
            f"load_weights: path must have no negative weights of norms for a network that reads them "
            f"as {scale_kind(model)}, got {source}, saved by one that reads them as {kind}, with some "
            f"in {', '.join(names[:_LINES])}; build the network with the norm it was trained with"
        )


def _is_counter(name: str) -> bool:
    """Tell a counter of batches, which changes no result."""
    return name.endswith(".num_batches_tracked")


def _unwrapped(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def _owned(name: str, own: Mapping[str, Tensor]) -> str:
    """Return the name under which the network has a tensor, or would have it."""
    if name in own or name.startswith(_PARTS):
        return name
    for part in _PARTS:
        if part + name in own:
            return part + name
        # A query name of the published code has no tensor here, but its key twin has.
        if part + name.replace(".f_query.", ".f_key.") in own:
            return part + name
    return name
