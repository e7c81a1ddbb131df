# SPDX-License-Identifier: MIT
"""Every network with few channels: the published structure, in no time."""

from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from ocnet.models import Segmentor, names
from ocnet.models.backbones import HRNetBody
from ocnet.models.builder import build, find

CLASSES = 4
# Names that share everything but the backbone's depth or a width are not repeated.
STRUCTURES = tuple(
    name for name in names() if name.startswith(("resnet101", "openseg", "hrnet", "seg_", "ce2p"))
)
_ATTENDING = ("oc", "isa", "ocr")


def slim(
    name: str, num_classes: int = CLASSES, size: int | None = None, **options: Any
) -> Segmentor:
    """Return a network with 8 channels in its heads, on ResNet-18, or of another ``size``.

    HRNets have 4 channels, one block where there are four, and fewer exchanges.
    """
    recipe = find(name)
    if size is None:
        size = {"resnet": 18, "hrnet": 4, "tiny": 0}[recipe.backbone]
    defaults = dict(recipe.options) | {"channels": 8}
    if "aux_channels" in defaults:
        defaults["aux_channels"] = 8
    if "dilations" in options or "asp" in name:
        # Of a few pixels, so that they reach within small maps.
        defaults["dilations"] = (1, 2, 3)
    recipe = replace(recipe, size=size, options=defaults)
    small_hrnet = partial(HRNetBody, exchanges=(1, 2, 1), blocks=1)
    with patch("ocnet.models.builder.HRNetBody", small_hrnet):
        return build(recipe, name, num_classes, **options)


def attends(name: str) -> bool:
    """Tell whether a network has attention."""
    return name.rpartition("_")[2] in (*_ATTENDING, "b")


def awake(model: nn.Module) -> nn.Module:
    """Give numbers to what starts at zero, so that attention takes part, and to all norms."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("W.weight"):
                parameter.normal_(std=0.3)
            elif parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name, values in model.named_buffers():
            if name.endswith("running_mean"):
                values.normal_(std=0.1)
            elif name.endswith("running_var"):
                values.uniform_(0.5, 1.5)
    return model
