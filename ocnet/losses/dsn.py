# SPDX-License-Identifier: MIT
"""Cross-entropy with deep supervision."""

from collections.abc import Mapping

from torch import Tensor, nn

from ocnet.losses.cross_entropy import cross_entropy


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

    def forward(self, outputs: Mapping[str, Tensor], target: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            outputs: Logits ``(N, K, h, w)`` as ``"main"``, and as ``"aux"`` where there are any.
            target: Labels ``(N, H, W)``, integer.

        Raises:
            TypeError: As ``cross_entropy``.
            ValueError: As ``cross_entropy``, or no main logits.
        """
        if "main" not in outputs:
            raise ValueError(f"DSNLoss: outputs must hold 'main', got {sorted(outputs)}")
        loss = self._term(outputs["main"], target)
        if "aux" in outputs:
            loss = loss + self.aux_weight * self._term(outputs["aux"], target)
        return loss

    def _term(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target, ignore_index=self.ignore_index, weight=self.weight)
