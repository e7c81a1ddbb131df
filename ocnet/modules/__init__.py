# SPDX-License-Identifier: MIT
"""Layers with parameters: activated batch norm, object context in its forms, and its local control."""

from ocnet.modules.abn import ABN
from ocnet.modules.base_local import BaseLocal
from ocnet.modules.base_oc import BaseOC
from ocnet.modules.isa import ISA, InterlacedContext
from ocnet.modules.local_context import LocalContext
from ocnet.modules.object_context import ObjectContext
from ocnet.modules.pyramid_oc import PyramidOC

__all__ = [
    "ABN",
    "ISA",
    "BaseLocal",
    "BaseOC",
    "InterlacedContext",
    "LocalContext",
    "ObjectContext",
    "PyramidOC",
]
