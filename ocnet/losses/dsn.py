# SPDX-License-Identifier: MIT
"""Cross-entropy with deep supervision."""

from typing import Protocol

from torch import Tensor, nn

from ocnet.losses.cross_entropy import cross_entropy


class TwoLogits(Protocol):
    """What the loss reads of the result of a network."""

    @property
    def main(self) -> Tensor:
        """Logits ``(N, K, h, w)`` that count in full."""

    @property
    def aux(self) -> Tensor | None:
        """Logits ``(N, K, h, w)`` of an auxiliary head, if there are any."""


class DSNLoss(nn.Module):
    """Add the losses of main and auxiliary logits: ``main + aux_weight * aux``.

    Each is a ``cross_entropy``; without auxiliary logits it is that of the main ones.

    Args:
        aux_weight: Weight of the auxiliary loss.
        ignore_index: Label of the pixels that do not count.
        weight: ``(K,)``, a weight for each class; follows ``.to()``, and is not in the state dict.

    Source: CriterionDSN of OCNet (arXiv 1809.00916).
    """

    weight: Tensor | None

    def __init__(
        self, aux_weight: float = 0.4, ignore_index: int = 255, weight: Tensor | None = None
    ) -> None:
        super().__init__()
        self.aux_weight = aux_weight
        self.ignore_index = ignore_index
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, outputs: TwoLogits, target: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            outputs: What a network returns: logits ``main``, and ``aux`` or ``None``.
            target: Labels ``(N, H, W)``, integer.

        Raises:
            TypeError: As ``cross_entropy``, or ``outputs`` are something else.
            ValueError: As ``cross_entropy``.
        """
        if not hasattr(outputs, "main"):
            raise TypeError(
                f"DSNLoss: outputs must have logits main and aux, got {type(outputs).__name__}"
            )
        loss = self._term(outputs.main, target)
        if outputs.aux is not None:
            loss = loss + self.aux_weight * self._term(outputs.aux, target)
        return loss

    def _term(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target, ignore_index=self.ignore_index, weight=self.weight)
