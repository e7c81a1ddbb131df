# SPDX-License-Identifier: MIT
"""The data sets of the tables, in the layouts they are published in."""

from collections.abc import Mapping
from types import MappingProxyType

from ocnet.data.sets.ade20k import ADE20K
from ocnet.data.sets.cityscapes import CITYSCAPES
from ocnet.data.sets.coco_stuff import COCO_STUFF
from ocnet.data.sets.folder import folder_entries
from ocnet.data.sets.lip import LIP
from ocnet.data.sets.pascal_context import PASCAL_CONTEXT_59, PASCAL_CONTEXT_60
from ocnet.data.sets.source import Source

SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "cityscapes": CITYSCAPES,
        "ade20k": ADE20K,
        "lip": LIP,
        "coco_stuff": COCO_STUFF,
        "pascal_context_59": PASCAL_CONTEXT_59,
        "pascal_context_60": PASCAL_CONTEXT_60,
    }
)
"""The published data sets by name."""

__all__ = ["SOURCES", "Source", "folder_entries"]
