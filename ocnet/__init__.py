# SPDX-License-Identifier: MIT
"""Attention over pixels for scene parsing, made cheap by kernels of our own.

Importing ``ocnet`` loads no kernel and does not import torch; ``ocnet.ops`` does.
"""

from ocnet._version import __version__

__all__ = ["__version__"]
