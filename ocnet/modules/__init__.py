# SPDX-License-Identifier: MIT
"""Layers with parameters: activated batch norm, object context in its forms, and its local control."""

from ocnet.modules.abn import ABN, ACT_ELU, ACT_LEAKY_RELU, ACT_NONE, ACT_RELU
from ocnet.modules.abn_converting import (
    convert_batchnorm,
    convert_conv_bn,
    freeze_norms,
    from_batchnorm,
    to_batchnorm,
)
from ocnet.modules.abn_folding import to_deploy
from ocnet.modules.abn_groups import active_group, set_active_group
from ocnet.modules.asp_oc import ASPOC
from ocnet.modules.asp_ocr import ASPOCR
from ocnet.modules.base_local import BaseLocal
from ocnet.modules.base_oc import BaseOC, BaseOCContext
from ocnet.modules.inplace_abn import InPlaceABN, InPlaceABNSync, name_layers
from ocnet.modules.isa import ISA, InterlacedContext
from ocnet.modules.local_context import LocalContext
from ocnet.modules.norms import (
    BATCHNORM,
    Norm,
    SyncABN,
    activated,
    nested,
    norm_layer,
    norm_names,
)
from ocnet.modules.object_context import ObjectContext
from ocnet.modules.ocr import OCR, ObjectAttention, OCRContext, SpatialGather
from ocnet.modules.psp import PSP
from ocnet.modules.pyramid_oc import PyramidOC

__all__ = [
    "ABN",
    "ACT_ELU",
    "ACT_LEAKY_RELU",
    "ACT_NONE",
    "ACT_RELU",
    "ASPOC",
    "ASPOCR",
    "BATCHNORM",
    "ISA",
    "OCR",
    "PSP",
    "BaseLocal",
    "BaseOC",
    "BaseOCContext",
    "InPlaceABN",
    "InPlaceABNSync",
    "InterlacedContext",
    "LocalContext",
    "Norm",
    "OCRContext",
    "ObjectAttention",
    "ObjectContext",
    "PyramidOC",
    "SpatialGather",
    "SyncABN",
    "activated",
    "active_group",
    "convert_batchnorm",
    "convert_conv_bn",
    "freeze_norms",
    "from_batchnorm",
    "name_layers",
    "nested",
    "norm_layer",
    "norm_names",
    "set_active_group",
    "to_batchnorm",
    "to_deploy",
]
