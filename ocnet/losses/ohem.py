# SPDX-License-Identifier: MIT
"""Cross-entropy of the hardest pixels: online hard example mining."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ocnet.losses._inputs import prepared
from ocnet.losses.cross_entropy import mean_or_zero

OhemKind = Literal["ocnet", "openseg", "hrnet"]


def ohem_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    threshold: float = 0.7,
    min_kept: int = 100000,
    kind: OhemKind = "ocnet",
    ignore_index: int = 255,
    weight: Tensor | None = None,
) -> Tensor:
    """Return the mean cross-entropy of the pixels that the network is least sure of.

    Logits are resized as in ``cross_entropy``. ``p_i`` is the probability that they give pixel ``i`` for its
    own class, and ``n`` the number of pixels that are not ignored. A pixel is kept where ``p_i`` is small;
    what is kept is a constant to the gradient. The codes that publish results choose differently:

    - ``ocnet`` keeps ``p_i <= theta``, where ``theta`` is the larger of ``threshold`` and the ``min_kept``-th
      smallest ``p``. With ``min_kept >= n`` it keeps everything, with ``min_kept = 0`` ``theta`` is
      ``threshold``. Weights are those of a weighted mean: ``sum(w * loss) / sum(w)`` over what is kept.
    - ``hrnet`` keeps ``p_i < theta``, where ``theta`` is the larger of ``threshold`` and the ``p`` that comes after
      the ``max(min_kept, 1)`` smallest. Where there are not so many it is the largest, and a largest ``p`` of
      ``threshold`` or more is dropped. Weights do not normalise: ``sum(w * loss) / (number kept)``.
    - ``openseg`` is ``hrnet``, but the very first pixel of the batch takes part even where it is ignored, with
      its probability of class 0. Its loss is 0 then, but it counts in the number kept, and its ``p`` may be
      ``theta``.

    The loss is 0, and so is its gradient, where nothing is kept or nothing has a positive weight; the codes
    divide by zero there. A pixel of which ``p`` is NaN is kept, so that a network that diverged shows; the
    codes drop it.

    The batch is that of this process, and so is ``min_kept``: with several, each mines its own pixels, and
    their losses are averaged, as the codes do with GPUs. Nothing waits for the device: neither the number of
    pixels nor ``theta`` is read by the host. Results are bitwise repeatable.

    Args:
        logits: ``(N, K, h, w)``, floating. 16-bit logits are resized, compared and summed in fp32.
        target: Labels ``(N, H, W)``, integer, each in ``[0, K)`` or ``ignore_index``.
        threshold: Pixels below this probability are always kept; 0 to 1.
        min_kept: About how many pixels are kept at least, where there are so many; 0 or more.
        kind: Whose rule: ``ocnet``, ``openseg`` or ``hrnet``.
        ignore_index: Label of the pixels that do not count.
        weight: ``(K,)``, a weight for each class; 1 by default.

    Returns:
        A scalar of the dtype of the resized logits.

    Raises:
        TypeError: As ``cross_entropy``.
        ValueError: As ``cross_entropy``, or ``threshold``, ``min_kept`` or ``kind`` is out of range.

    Source: OhemCrossEntropy2d of OCNet (arXiv 1809.00916), FSOhemCELoss of openseg.pytorch, OhemCrossEntropy of
    HRNet-Semantic-Segmentation, whose branch of OCR resizes in the same way; its older ones do not align
    corners. ``p`` is ``exp(-loss)`` here and a softmax there: they agree to rounding.
    """
    check_mining(kind, threshold, min_kept)
    logits, target, weight = prepared("ohem_cross_entropy", logits, target, weight, ignore_index)
    valid = target != ignore_index
    known = target.where(valid, 0)
    losses = F.cross_entropy(logits, known, reduction="none")
    with torch.no_grad():
        chances = losses.neg().exp()
        if kind == "ocnet":
            kept = _kept_inclusively(chances, valid, threshold, min_kept)
        else:
            candidates = _with_the_first(valid) if kind == "openseg" else valid
            kept = _kept_strictly(chances, candidates, threshold, max(min_kept, 1))
        total = kept.sum().to(losses.dtype)
    if weight is not None:
        weights = weight[known]
        losses = losses * weights
        if kind == "ocnet":
            total = weights.where(kept, 0).sum()
    return mean_or_zero(losses.where(kept & valid, 0).sum(), total)


def check_mining(
    kind: str,
    threshold: float,
    min_kept: int,
    names: tuple[str, str, str] = (
        "ohem_cross_entropy: kind",
        "ohem_cross_entropy: threshold",
        "ohem_cross_entropy: min_kept",
    ),
) -> None:
    """Raise unless the arguments of hard example mining, called ``names`` in messages, are in range."""
    if kind not in get_args(OhemKind):
        raise ValueError(f"{names[0]} must be one of {', '.join(get_args(OhemKind))}, got {kind!r}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"{names[1]} must be 0 to 1, got {threshold}")
    if min_kept < 0:
        raise ValueError(f"{names[2]} must be 0 or more, got {min_kept}")


# Comparisons below are negated so that NaN is kept.


def _kept_inclusively(
    chances: Tensor, candidates: Tensor, threshold: float, min_kept: int
) -> Tensor:
    if min_kept >= chances.numel():
        return candidates
    if min_kept == 0:
        return candidates & ~(chances > threshold)
    # Infinite, so that everything is kept, where there are fewer candidates.
    theta = _smallest(chances, candidates, min_kept).clamp(min=threshold)
    return candidates & ~(chances > theta)


def _kept_strictly(chances: Tensor, candidates: Tensor, threshold: float, min_kept: int) -> Tensor:
    theta = chances.where(candidates, 0).amax()
    if min_kept < chances.numel():
        theta = torch.minimum(theta, _smallest(chances, candidates, min_kept + 1))
    return candidates & ~(chances >= theta.clamp(min=threshold))


def _smallest(chances: Tensor, candidates: Tensor, rank: int) -> Tensor:
    """Return the ``rank``-th smallest chance of the candidates, infinity where there are fewer."""
    # Not kthvalue, which has no deterministic kernel on a GPU.
    ranked = chances.where(candidates, torch.inf).flatten()
    return ranked.topk(rank, largest=False, sorted=False).values.amax()


def _with_the_first(valid: Tensor) -> Tensor:
    candidates = valid.flatten().clone()
    candidates[:1].fill_(True)
    return candidates.view_as(valid)
