# SPDX-License-Identifier: MIT
"""The networks, one to a file.

Each is a ``Segmentor`` built as ``Network(body, num_classes, style, **options)``, whose children have the
names of the published code, so that its state dict has the published keys.
"""

from ocnet.models.networks.asp_oc import ASPOCNet
from ocnet.models.networks.base_oc import BaseOCNet
from ocnet.models.networks.baseline import BaselineNet
from ocnet.models.networks.ce2p import CE2PNet
from ocnet.models.networks.hrnet_asp_ocr import HRNetASPOCRNet
from ocnet.models.networks.hrnet_fcn import HRNetFCNNet
from ocnet.models.networks.hrnet_ocr import HRNetOCRNet
from ocnet.models.networks.local import LocalNet
from ocnet.models.networks.openseg_asp_oc import OpensegASPOCNet
from ocnet.models.networks.openseg_asp_ocr import OpensegASPOCRNet
from ocnet.models.networks.openseg_base_oc import OpensegBaseOCNet
from ocnet.models.networks.openseg_fcn import OpensegFCNNet
from ocnet.models.networks.openseg_isa import OpensegISANet
from ocnet.models.networks.openseg_ocr import OpensegOCRNet
from ocnet.models.networks.pyramid_oc import PyramidOCNet
from ocnet.models.networks.seg_hrnet_ocr import SegHRNetOCRNet

__all__ = [
    "ASPOCNet",
    "BaseOCNet",
    "BaselineNet",
    "CE2PNet",
    "HRNetASPOCRNet",
    "HRNetFCNNet",
    "HRNetOCRNet",
    "LocalNet",
    "OpensegASPOCNet",
    "OpensegASPOCRNet",
    "OpensegBaseOCNet",
    "OpensegFCNNet",
    "OpensegISANet",
    "OpensegOCRNet",
    "PyramidOCNet",
    "SegHRNetOCRNet",
]
