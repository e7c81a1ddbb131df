# SPDX-License-Identifier: MIT
"""Cross-entropy of logits at feature resolution against labels at image resolution."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    logits: Tensor, target: Tensor, *, ignore_index: int = 255, weight: Tensor | None = None
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

    Returns:
        A scalar of the dtype of the resized logits.

    Raises:
        TypeError: ``logits`` are not floating, or ``target`` is not integer.
        ValueError: Shapes that do not fit, or a label outside the range. Labels are looked at on
            the CPU only: on a GPU that would wait for the device, and the kernel traps on them.

    Source: CriterionCrossEntropy of OCNet (arXiv 1809.00916), which is NaN where this is 0.
    """
    _check(logits, target, weight)
    target = target.long()
    classes = logits.shape[1]
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_labels(target, classes, ignore_index)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if logits.shape[-2:] != target.shape[-2:]:
        logits = F.interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=True)
    if weight is not None:
        weight = weight.to(logits.dtype)
    # Summed here and not by the kernel: its own sum on a GPU depends on the order of atomic
    # additions.
    losses = F.cross_entropy(logits, target, weight, ignore_index=ignore_index, reduction="none")
    counts = target != ignore_index
    if weight is None:
        total = counts.sum().to(losses.dtype)
    else:
        total = (weight[target.where(counts, 0)] * counts).sum()
    return losses.sum() / total.where(total > 0, 1)


def _check(logits: Tensor, target: Tensor, weight: Tensor | None) -> None:
    if not logits.is_floating_point():
        raise TypeError(f"cross_entropy: logits must be floating, got {logits.dtype}")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"cross_entropy: target must be integer, got {target.dtype}")
    if logits.dim() != 4:
        raise ValueError(
            f"cross_entropy: logits must have shape (N, K, h, w), got {tuple(logits.shape)}"
        )
    if target.dim() != 3 or target.shape[0] != logits.shape[0]:
        raise ValueError(
            f"cross_entropy: target must have shape ({logits.shape[0]}, H, W), "
            f"got {tuple(target.shape)}"
        )
    if weight is not None and weight.shape != logits.shape[1:2]:
        raise ValueError(
            f"cross_entropy: weight must have shape ({logits.shape[1]},), got {tuple(weight.shape)}"
        )


def _check_labels(target: Tensor, classes: int, ignore_index: int) -> None:
    outside = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if bool(outside.any()):
        raise ValueError(
            f"cross_entropy: target must hold labels in [0, {classes}) or {ignore_index}, "
            f"got {int(target[outside][0])}"
        )
