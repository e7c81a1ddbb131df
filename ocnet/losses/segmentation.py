# SPDX-License-Identifier: MIT
"""The loss of a whole network: main, auxiliary and edge logits."""

from typing import Literal, Protocol, get_args

from torch import Tensor, nn

from ocnet.losses.cross_entropy import cross_entropy
from ocnet.losses.edge import edge_labels, edge_loss
from ocnet.losses.ohem import OhemKind, check_mining, ohem_cross_entropy

CITYSCAPES_WEIGHTS = (
    *(0.8373, 0.9180, 0.8660, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023),
    *(0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507),
)
"""Weights of the 19 classes of Cityscapes, with which OCNet and HRNet train."""

Mining = Literal["none", "single", "both"]

_NAMES = (
    "SegmentationLoss: ohem_kind",
    "SegmentationLoss: ohem_threshold",
    "SegmentationLoss: ohem_keep",
)


class MainAndAux(Protocol):
    """What the loss reads of the result of a network, besides ``edge`` where there is such a thing."""

    @property
    def main(self) -> Tensor:
        """Logits ``(N, K, h, w)`` that count in full."""

    @property
    def aux(self) -> Tensor | None:
        """Logits ``(N, K, h, w)`` of an auxiliary head, if there are any."""


class SegmentationLoss(nn.Module):
    """Add the losses of all logits: ``main + aux_weight * aux + edge_weight * edge``.

    The first two are a ``cross_entropy`` or ``ohem_cross_entropy`` against the labels, the last is an
    ``edge_loss`` against the ``edge_labels`` made of them. Logits that a network does not have add nothing.

    All of them are means over the batch of this process. With several processes their mean is the loss, as
    OCNet's is the mean over GPUs: pixels of a process with few labelled ones weigh more.

    Args:
        aux_weight: Weight of the auxiliary loss. 0.4 for OCNet, openseg and HRNet, 1 for CE2P.
        ignore_index: Label of the pixels that do not count.
        weight: ``(K,)``, a weight for each class of main and auxiliary logits; follows ``.to()``, and is not in
            the state dict.
        ohem: Which logits learn from hard pixels only: ``none``, the main ones (``single``), or ``both``.
        ohem_kind: Whose rule chooses them; see ``ohem_cross_entropy``.
        ohem_threshold: Probability below which a pixel is hard.
        ohem_keep: About how many pixels are kept at least, of the batch of this process.
        edge_weight: Weight of the loss of edges. 1 for CE2P.

    Raises:
        ValueError: An argument is out of range.

    Source: CriterionDSN (``none``), CriterionOhemDSN_single and CriterionOhemDSN (``both``) of OCNet (arXiv
    1809.00916), FSAuxCELoss and FSAuxOhemCELoss of openseg.pytorch, CriterionAll of CE2P (arXiv 1809.05996).
    HRNet-Semantic-Segmentation divides the auxiliary loss by the number of all pixels where it mines, ignored
    ones among them, and not by weights; so does ``single`` with its rule.
    """

    weight: Tensor | None

    def __init__(
        self,
        *,
        aux_weight: float = 0.4,
        ignore_index: int = 255,
        weight: Tensor | None = None,
        ohem: Mining = "none",
        ohem_kind: OhemKind = "ocnet",
        ohem_threshold: float = 0.7,
        ohem_keep: int = 100000,
        edge_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if ohem not in get_args(Mining):
            raise ValueError(
                f"SegmentationLoss: ohem must be one of {', '.join(get_args(Mining))}, got {ohem!r}"
            )
        check_mining(ohem_kind, ohem_threshold, ohem_keep, _NAMES)
        self.aux_weight = aux_weight
        self.ignore_index = ignore_index
        self.ohem: Mining = ohem
        self.ohem_kind: OhemKind = ohem_kind
        self.ohem_threshold = ohem_threshold
        self.ohem_keep = ohem_keep
        self.edge_weight = edge_weight
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, outputs: MainAndAux, target: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            outputs: What a network returns: logits ``main``, ``aux`` or ``None``, and perhaps ``edge``, which
                may be ``None`` too.
            target: Labels ``(N, H, W)``, integer.

        Raises:
            TypeError: As ``cross_entropy``, or ``outputs`` are something else.
            ValueError: As ``cross_entropy`` and ``edge_loss``.
        """
        if not hasattr(outputs, "main"):
            raise TypeError(
                f"SegmentationLoss: outputs must have logits main and aux, got {type(outputs).__name__}"
            )
        loss = self._term(outputs.main, target, mined=self.ohem != "none")
        if outputs.aux is not None:
            aux = self._term(outputs.aux, target, mined=self.ohem == "both")
            loss = loss + self.aux_weight * aux
        edge: Tensor | None = getattr(outputs, "edge", None)
        if edge is not None:
            edges = edge_labels(target, ignore_index=self.ignore_index)
            loss = loss + self.edge_weight * edge_loss(edge, edges)
        return loss

    def _term(self, logits: Tensor, target: Tensor, mined: bool) -> Tensor:
        if not mined:
            return cross_entropy(
                logits,
                target,
                ignore_index=self.ignore_index,
                weight=self.weight,
                over_all=self.ohem == "single" and self.ohem_kind == "hrnet",
            )
        return ohem_cross_entropy(
            logits,
            target,
            threshold=self.ohem_threshold,
            min_kept=self.ohem_keep,
            kind=self.ohem_kind,
            ignore_index=self.ignore_index,
            weight=self.weight,
        )
