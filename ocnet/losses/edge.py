# SPDX-License-Identifier: MIT
"""Edges between the parts of a label map, and the loss of CE2P's branch that finds them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ocnet.losses._inputs import check_target, prepared
from ocnet.losses.cross_entropy import weighted_mean


def edge_labels(target: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Return where labels change: 1 on edges, 0 elsewhere.

    Two pixels that touch, also at a corner, differ where both have a class and not the same one. One of the
    two is marked: the lower of two in a column, the left of two in a row, the upper of two in a diagonal.
    Then every pixel is an edge that is marked or next to a marked one, also at a corner. That is two pixels
    on either side of a straight boundary.

    Ignored pixels make no edges, but are no exception otherwise: they are edges next to marked pixels and
    0 elsewhere, and count in the loss.

    Args:
        target: Labels ``(N, H, W)``, integer.
        ignore_index: Label of the pixels without a class.

    Returns:
        ``(N, H, W)``, int64, on the device of ``target``.

    Raises:
        TypeError: ``target`` is not integer.
        ValueError: ``target`` is not of rank 3.

    Source: generate_edge of CE2P (arXiv 1809.05996), which computes it on the CPU with its data.
    """
    check_target("edge_labels", target)
    # An ignored label of -1 would be 255 to unsigned labels.
    target = target.long()
    valid = target != ignore_index

    def change(one: tuple[slice, ...], other: tuple[slice, ...]) -> Tensor:
        return (target[one] != target[other]) & valid[one] & valid[other]

    every, low, high = slice(None), slice(None, -1), slice(1, None)
    marked = torch.zeros_like(valid)
    for one, other in (
        ((every, high, every), (every, low, every)),
        ((every, every, low), (every, every, high)),
        ((every, low, low), (every, high, high)),
        ((every, low, high), (every, high, low)),
    ):
        marked[one].logical_or_(change(one, other))
    return F.max_pool2d(marked.unsqueeze(1).float(), 3, stride=1, padding=1).squeeze(1).long()


def edge_loss(logits: Tensor, target: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Return the cross-entropy of edges, in which edges and the rest weigh the same.

    The weighted mean of ``cross_entropy``, where the weight of edges is the share of the other pixels of the
    batch, and the weight of those is the share of edges. That is half the mean loss of edges plus half
    the mean loss of the rest. Without both in the batch it is 0, and so is its gradient.

    The batch is that of this process. Nothing waits for the device.

    Args:
        logits: ``(N, 2, h, w)``, floating: no edge, edge. Resized as in ``cross_entropy``.
        target: Edges ``(N, H, W)``, integer: 1, 0, or ``ignore_index``; see ``edge_labels``.
        ignore_index: Label of the pixels that do not count; not 0 or 1.

    Returns:
        A scalar of the dtype of the resized logits.

    Raises:
        TypeError: As ``cross_entropy``.
        ValueError: As ``cross_entropy``, logits of other classes, or an ``ignore_index`` that is a class.

    Source: CriterionAll of CE2P (arXiv 1809.05996), which is NaN where this is 0.
    """
    if logits.dim() == 4 and logits.shape[1] != 2:
        raise ValueError(
            f"edge_loss: logits must have shape (N, 2, h, w), got {tuple(logits.shape)}"
        )
    if ignore_index in (0, 1):
        raise ValueError(f"edge_loss: ignore_index must not be 0 or 1, got {ignore_index}")
    logits, target, _ = prepared("edge_loss", logits, target, None, ignore_index)
    counts = torch.stack([(target == 1).sum(), (target == 0).sum()]).to(logits.dtype)
    weight = counts / counts.sum().clamp(min=1)
    return weighted_mean(logits, target, weight, ignore_index)
