# SPDX-License-Identifier: MIT
"""Layers with parameters: activated batch norm, object context and its local control."""

from ocnet.modules.abn import ABN
from ocnet.modules.base_local import BaseLocal
from ocnet.modules.base_oc import BaseOC
from ocnet.modules.local_context import LocalContext
from ocnet.modules.object_context import ObjectContext

__all__ = ["ABN", "BaseLocal", "BaseOC", "LocalContext", "ObjectContext"]
