# SPDX-License-Identifier: MIT
"""openseg's ASP-OC."""

from ocnet.models.networks.asp_oc import ASPOCNet


class OpensegASPOCNet(ASPOCNet):
    """``ASPOCNet`` with transforms of their own for queries and for keys, as openseg has it.

    Values have half of a branch's channels by default, the context has no convolution behind it, and the
    auxiliary head no dropout. Logits are resized to the images.

    Source: ``asp_ocnet`` of openseg.
    """

    flat = False
    upsamples = True
    shared = False
