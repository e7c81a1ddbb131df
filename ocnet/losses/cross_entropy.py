# SPDX-License-Identifier: MIT
"""Cross-entropy of logits at feature resolution against labels at image resolution."""

import torch.nn.functional as F
from torch import Tensor

from ocnet.losses._inputs import prepared


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    weight: Tensor | None = None,
    over_all: bool = False,
) -> Tensor:
    """Return the weighted mean cross-entropy of resized logits.

    ``sum_i w[y_i] * -log softmax(z_i)[y_i] / sum_i w[y_i]`` over the pixels ``i`` that are not
    ignored, where ``z`` are the logits resized bilinearly, with ``align_corners=True``, to the size
    of the labels. Without any such pixel, or with none of positive weight, the loss is 0, and so is
    its gradient.

    Args:
        logits: ``(N, K, h, w)``, floating. 16-bit logits are resized and summed in fp32.
        target: Labels ``(N, H, W)``, integer, each in ``[0, K)`` or ``ignore_index``.
        ignore_index: Label of the pixels that do not count.
        weight: ``(K,)``, a weight for each class; 1 by default.
        over_all: Divide by the number of all pixels instead, ignored ones among them, whatever the weights.

    Returns:
        A scalar of the dtype of the resized logits.

    Raises:
        TypeError: ``logits`` are not floating, or ``target`` is not integer.
        ValueError: Shapes that do not fit, or a label outside the range. Labels are looked at on
            the CPU only: on a GPU that would wait for the device, and the kernel traps on them.

    Source: CriterionCrossEntropy of OCNet (arXiv 1809.00916), which is NaN where this is 0. ``over_all`` is what
    HRNet-Semantic-Segmentation comes to for auxiliary logits where it mines: it averages an unreduced map.
    """
    logits, target, weight = prepared("cross_entropy", logits, target, weight, ignore_index)
    if over_all:
        losses = F.cross_entropy(
            logits, target, weight, ignore_index=ignore_index, reduction="none"
        )
        return losses.sum() / max(target.numel(), 1)
    return weighted_mean(logits, target, weight, ignore_index)


def weighted_mean(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int
) -> Tensor:
    """Return ``cross_entropy`` of what ``prepared`` returns."""
    # Summed here and not by the kernel: its own sum on a GPU depends on the order of atomic
    # additions.
    losses = F.cross_entropy(logits, target, weight, ignore_index=ignore_index, reduction="none")
    counts = target != ignore_index
    if weight is None:
        total = counts.sum().to(losses.dtype)
    else:
        total = (weight[target.where(counts, 0)] * counts).sum()
    return mean_or_zero(losses.sum(), total)


def mean_or_zero(summed: Tensor, total: Tensor) -> Tensor:
    """Return ``summed / total``, and 0 with a gradient of 0 where ``total`` and ``summed`` are 0."""
    return summed / total.where(total > 0, 1)
