# SPDX-License-Identifier: MIT
"""What all layers of a network's heads are built with."""

from dataclasses import dataclass

from ocnet.modules import BATCHNORM, Norm, activated


@dataclass(frozen=True)
class Style:
    """Norms, activation and back end.

    Attributes:
        norm: What ``ocnet.modules.norm_layer`` returned.
        activation: ``leaky_relu`` (slope 0.01) or ``relu``, of the heads.
        backend: Back end of the ops of attention.
    """

    norm: Norm = BATCHNORM
    activation: str = "leaky_relu"
    backend: str = "auto"

    @property
    def act(self) -> Norm:
        """The norm with its activation."""
        return activated(self.norm, self.activation)

    @property
    def plain(self) -> Norm:
        """The norm without activation."""
        return activated(self.norm, "identity")
