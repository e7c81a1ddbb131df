# SPDX-License-Identifier: MIT
"""Parts of networks that several of them put behind their features, and that end in logits."""

from ocnet.heads.classifier import classifier
from ocnet.heads.decoder import Decoder
from ocnet.heads.edge import Edge

__all__ = ["Decoder", "Edge", "classifier"]
