# SPDX-License-Identifier: MIT
"""Weights from anywhere into a network: every published layout, with a report."""

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ocnet.models.key_names import common_names, is_counter, is_never_used, unwrapped
from ocnet.models.segmentor import Segmentor
from ocnet.models.weights import MAGNITUDES, SCALE_KEY, check_scales, read_metadata, scale_kind
from ocnet.modules.attention_transforms import AttentionTransforms, complete_shared_query

Shape = tuple[int, ...]

_SAFETENSORS = ".safetensors"
# Under which training scripts keep the network, beside other things.
_WRAPPING_KEYS = ("state_dict", "model")
_LINES = 8
_ADVICE = (
    "the file is of a build with torch's norms and ReLU: create(..., norm='batchnorm') computes what it was "
    "trained as; in-place norms read magnitudes of weights, and activate by leaky ReLU"
)
# Stems differ, of one convolution or three, narrow or wide, and what two of them call alike is not the same.
_FIRST = "conv1.weight"
_STEM = ("conv1.", "bn1.", "conv2.", "bn2.", "conv3.", "bn3.")
# What takes the stem's output, of other widths.
_FIRST_SHORTCUT = "layer1.0.downsample."
_BEHIND_STEM = ("layer1.0.conv1.weight", "layer1.0.downsample.0.weight")


class Entry(NamedTuple):
    """A tensor.

    Attributes:
        name: Its name.
        shape: Its shape.
    """

    name: str
    shape: Shape


class Renamed(NamedTuple):
    """A tensor that the network has under another name.

    Attributes:
        source: Its name in the file.
        name: Its name in the network.
        shape: Its shape.
    """

    source: str
    name: str
    shape: Shape


class Mismatch(NamedTuple):
    """A tensor of another shape.

    Attributes:
        name: Its name in the network.
        given: Its shape in the file.
        wanted: Its shape in the network.
    """

    name: str
    given: Shape
    wanted: Shape


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a file and of those of a network.

    Attributes:
        loaded: Tensors of the network that have their values from the file.
        renamed: Those of them that have another name in the file.
        left: Tensors of the network as they were: the file has nothing for them.
        unused: Tensors of the file that the network has no place for.
        mismatched: Tensors of both that differ in shape; left as they were.
        complaint: Why file and network do not fit, in a few words; empty if they do.
        advice: What to know of a file that fits and still may not compute the same; empty if nothing.
    """

    loaded: tuple[Entry, ...]
    renamed: tuple[Renamed, ...]
    left: tuple[Entry, ...]
    unused: tuple[Entry, ...]
    mismatched: tuple[Mismatch, ...]
    complaint: str = ""
    advice: str = ""

    @property
    def ok(self) -> bool:
        """Whether everything fits, but for what never does: the classifier of a backbone's file."""
        return not self.complaint

    def __str__(self) -> str:
        """Return the report as text, a few names of each kind."""
        lines = [f"{len(self.loaded)} loaded, {len(self.renamed)} of them renamed"]
        if self.renamed:
            lines[0] += f", as {self.renamed[0].source} to {self.renamed[0].name}"
        kinds = (
            ("left as they were", [f"{e.name} {_sized(e.shape)}" for e in self.left]),
            ("in the file alone", [f"{e.name} {_sized(e.shape)}" for e in self.unused]),
            (
                "of another shape",
                [
                    f"{e.name} (file {_sized(e.given)}, network {_sized(e.wanted)})"
                    for e in self.mismatched
                ],
            ),
        )
        for kind, names in kinds:
            if names:
                lines.append(f"{len(names)} {kind}:")
                lines += [f"  {name}" for name in names[:_LINES]]
                if len(names) > _LINES:
                    lines.append(f"  and {len(names) - _LINES} more")
        if self.advice:
            lines.append(self.advice)
        return "\n".join(lines)


def load_checkpoint(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    strict: bool = True,
) -> LoadReport:
    """Copy weights into a network, whatever published code or wrapper they come from.

    Reads safetensors and torch's files, of which only tensors are unpickled; of a dict with ``state_dict`` or
    ``model`` that part. Names are those of OCNet's code (a shared transform under one of its names or both),
    openseg's (``module.``, the ``.0`` of its builds with torch's norms), the HRNet repository's
    (``model.``), CE2P's, of ImageNet files (``resnet101-imagenet.pth``, HRNet's), and of torchvision's and
    timm's ResNets. Counters of batches may be absent on either side.

    A file of the backbone alone leaves heads as they are, and its classifier is not used. Of a ResNet with
    another stem, such as the common one of one 7 x 7 convolution, the deep stem takes nothing, nor do the two
    convolutions behind it, which have other widths.

    Args:
        model: The network, changed in place.
        source: File, or tensors by name.
        strict: All else must fit. Otherwise what fits is loaded.

    Returns:
        What was loaded, renamed, left and unused, by name and shape.

    Raises:
        FileNotFoundError: No such file.
        TypeError: ``source`` is something else, or names something that is no tensor.
        ValueError: The file cannot be read, or does not fit; the network is as before then.
    """
    where, given = _read(source)
    if not isinstance(source, Mapping) and where.endswith(_SAFETENSORS):
        check_scales(where, model, given, read_metadata(where).get(SCALE_KEY))
    own = model.state_dict()
    fit = _Fit(model, own, given)
    report = fit.report()
    if fit.contradictions or (strict and not report.ok):
        heading = f", of which {report.complaint}" if report.complaint else ""
        raise ValueError(
            f"load_checkpoint: source must fit the network, got {where} with {len(given)} tensors for "
            f"{len(own)}{heading}\n" + "\n".join([*fit.contradictions, str(report)])
        )
    with torch.no_grad():
        for name, value in fit.copies():
            own[name].copy_(value)
    return report


class _Fit:
    """Which tensor of a file goes where."""

    def __init__(
        self, model: nn.Module, own: Mapping[str, Tensor], given: Mapping[str, Tensor]
    ) -> None:
        self._own = own
        self._given = given
        self._magnitudes = scale_kind(model) == MAGNITUDES
        self._backbone = _backbone_names(model, own)
        self._own_common = common_names(own)
        self._common = common_names(given)
        places = {common: name for name, common in self._own_common.items()}
        self._other_stem = any(
            common == _FIRST and common in places and not _alike(given[name], own[places[common]])
            for name, common in self._common.items()
        )
        self.contradictions: list[str] = []
        self._sources: dict[str, str] = {}
        self._unused: list[str] = []
        for name, common in self._common.items():
            self._take(name, None if self._of_other_stem(common) else places.get(common))
        self._values = {place: given[name] for place, name in self._sources.items()}
        for name, module in model.named_modules():
            if isinstance(module, AttentionTransforms) and module.shared:
                prefix = f"{name}." if name else ""
                self.contradictions += complete_shared_query(self._values, prefix)

    def copies(self) -> list[tuple[str, Tensor]]:
        """Return the names of the network that get a value, and the values."""
        return [(n, v) for n, v in self._values.items() if v.shape == self._own[n].shape]

    def report(self) -> LoadReport:
        """Return what :meth:`copies` would do."""
        shapes = {name: tuple(value.shape) for name, value in self._own.items()}
        loaded = dict(self.copies())
        mismatched = [
            Mismatch(name, tuple(value.shape), shapes[name])
            for name, value in self._values.items()
            if name not in loaded
        ]
        left = [n for n in self._own if n not in self._values and not is_counter(n)]
        return LoadReport(
            tuple(Entry(name, shapes[name]) for name in loaded),
            tuple(
                Renamed(source, name, shapes[name])
                for name, source in self._sources.items()
                if source != name and name in loaded
            ),
            tuple(Entry(name, shapes[name]) for name in left),
            tuple(Entry(name, tuple(self._given[name].shape)) for name in self._unused),
            tuple(mismatched),
            self._complaint(left, mismatched),
            _ADVICE if self._magnitudes and self._of_torchs_norms() else "",
        )

    def _of_torchs_norms(self) -> bool:
        """Tell a file of norms in a ``Sequential`` of their own, as builds with torch's norms have them."""
        return any(
            f"{place.rpartition('.')[0]}.0.running_mean" == unwrapped(source)
            for place, source in self._sources.items()
            if place.endswith(".running_mean")
        )

    def _take(self, name: str, place: str | None) -> None:
        if place is None:
            if not is_counter(name):
                self._unused.append(name)
        elif place in self._sources:
            self.contradictions.append(
                f"{self._sources[place]} and {name} are both {place} of the network"
            )
        else:
            self._sources[place] = name

    def _complaint(self, left: list[str], mismatched: list[Mismatch]) -> str:
        missing = [name for name in left if not self._may_be_missing(self._own_common[name])]
        of_backbone = self._backbone.issuperset(self._values) and bool(self._values)
        if of_backbone and self._backbone.isdisjoint(missing):
            missing = []
        foreign = [
            common
            for common in map(self._common.__getitem__, self._unused)
            if not (is_never_used(common) or self._of_other_stem(common))
        ]
        reasons = (
            (missing, "are missing in it"),
            (foreign, "are not in the network"),
            (mismatched, "are of another shape"),
        )
        return ", ".join(f"{len(names)} {reason}" for names, reason in reasons if names)

    def _may_be_missing(self, common: str) -> bool:
        """Tell what a file with another stem need not have."""
        # Behind a narrow stem the first shortcut of ResNet-18 is not even a convolution.
        shortcut = self._other_stem and common.startswith(_FIRST_SHORTCUT)
        return shortcut or self._of_other_stem(common)

    def _of_other_stem(self, common: str) -> bool:
        """Tell what belongs to one kind of stem, where file and network have different ones."""
        return self._other_stem and (common.startswith(_STEM) or common in _BEHIND_STEM)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Tell whether two weights are of one kind of convolution, whatever its input has for channels."""
    return one.dim() == other.dim() and (one.shape[0], one.shape[2:]) == (
        other.shape[0],
        other.shape[2:],
    )


def _backbone_names(model: nn.Module, own: Mapping[str, Tensor]) -> frozenset[str]:
    """Return the names of a network's state that belong to its backbone."""
    for prefix, module in model.named_modules():
        if isinstance(module, Segmentor):
            start = f"{prefix}." if prefix else ""
            parts = tuple(f"{start}{child}." for child in module.backbone_children)
            return frozenset(name for name in own if name.startswith(parts))
    return frozenset()


def _read(source: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """Return in words where tensors come from, and the tensors."""
    if isinstance(source, Mapping):
        return "a state dict", _tensors("a state dict", source)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            "load_checkpoint: source must be a path or tensors by name, got "
            f"{type(source).__name__}"
        )
    where = os.fspath(source)
    if not Path(where).is_file():
        raise FileNotFoundError(f"load_checkpoint: source must name a file, got {where}")
    try:
        if where.endswith(_SAFETENSORS):
            content: Any = safetensors.torch.load_file(where)
        else:
            content = torch.load(where, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            "load_checkpoint: source must be a safetensors file, or one of torch with tensors alone, got "
            f"{where} ({reason[:200]})"
        ) from error
    return where, _tensors(where, content)


def _tensors(where: str, content: Any) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        inner = [content[key] for key in _WRAPPING_KEYS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping):
        raise TypeError(
            "load_checkpoint: source must hold tensors by name, got "
            f"{type(content).__name__} in {where}"
        )
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"load_checkpoint: source must hold tensors by name, got {type(value).__name__} "
                f"for {name!r} in {where}"
            )
    return dict(content)


def _sized(shape: Shape) -> str:
    return "x".join(map(str, shape)) if shape else "scalar"
