# SPDX-License-Identifier: MIT
"""What attention looks at, without the matrix: class-to-class mass, and the entropy of every row."""

import contextlib
from typing import Any

import torch
from torch import Tensor

from ocnet.ops._backends import AUTO
from ocnet.ops._checks import check_integers, check_keys, check_same, shape_of
from ocnet.ops._layout import tokens
from ocnet.ops.oc_attention.functional import oc_attention
from ocnet.ops.oc_attention.problem import DTYPES

IGNORED = 255  # the label of unlabelled pixels in the published data sets


@torch.no_grad()
def attention_mass(
    query: Tensor,
    key: Tensor,
    labels: Tensor,
    *,
    classes: int | None = None,
    key_labels: Tensor | None = None,
    scale: float | None = None,
    backend: str = AUTO,
) -> Tensor:
    r"""Return how much attention the pixels of each class pay to the pixels of each class.

    .. math::
        M_{ab} = \frac{1}{|a|} \sum_{l \in a} \sum_{s \in b} \mathrm{softmax}_s(a_{ls})

    The op itself gathers one-hot labels in place of values, so the cost is that of attention with
    ``classes`` value channels: ``O(L * classes)`` memory, never ``L x S``.

    Args:
        query: ``(N, E, H, W)``, floating.
        key: ``(N, E, Hk, Wk)``, same dtype and device.
        labels: ``(N, H, W)`` integers, the class of each query pixel; 255 and everything else outside
            ``0 .. classes - 1`` is no class.
        classes: Number of classes, 1 to 512; the largest label below 255 plus one by default (which
            reads the labels back from a GPU).
        key_labels: ``(N, Hk, Wk)``; ``labels`` by default, where the key map has the query's size.
        scale: Factor of the scores; ``E ** -0.5`` by default.
        backend: As for :func:`ocnet.ops.oc_attention`.

    Returns:
        ``(N, classes, classes)``, float32 (float64 for float64 inputs). Row ``a`` is the mean over the
        query pixels of class ``a``; it sums to 1 where every key pixel has a class. NaN for a class
        without query pixels.

    Raises:
        TypeError: Not tensors, or labels that are not integers.
        ValueError: Shapes that do not fit.

    Source:
        Sums of the matrix of OCNet (arXiv 1809.00916), equation 1, over the ground-truth object
        context of its section 3.
    """
    name = "attention_mass"
    check_keys(name, query, key, DTYPES)
    _check_labels(name, "labels", labels, "query", query)
    if key_labels is None:
        key_labels = labels
    _check_labels(name, "key_labels", key_labels, "key", key)
    if classes is None:
        known = labels[(labels >= 0) & (labels != IGNORED)]
        classes = int(known.max()) + 1 if known.numel() else 1
    if classes < 1:
        raise ValueError(f"{name}: classes must be at least 1, got {classes}")
    query, key = _wide(query, key)
    with _no_autocast(query.device.type):
        paid = oc_attention(
            query, key, _one_hot(key_labels, classes, query), scale=scale, backend=backend
        )
        owners = tokens(_one_hot(labels, classes, query)).mT
        return (owners @ tokens(paid)) / owners.sum(-1, keepdim=True)


@torch.no_grad()
def attention_entropy(
    query: Tensor, key: Tensor, *, scale: float | None = None, backend: str = AUTO
) -> Tensor:
    r"""Return the entropy of every pixel's attention, in nats: 0 looks at one pixel, ``log S`` at all.

    .. math:: H_l = \mathrm{lse}_l - \mathrm{scale} \, \Big\langle q_l, \sum_s P_{ls} k_s \Big\rangle

    where the sum is attention with the keys as values: linear memory, the cost of one forward pass.

    Args:
        query: ``(N, E, H, W)``, floating.
        key: ``(N, E, Hk, Wk)``, same dtype and device.
        scale: Factor of the scores; ``E ** -0.5`` by default.
        backend: As for :func:`ocnet.ops.oc_attention`.

    Returns:
        ``(N, H, W)``, float32 (float64 for float64 inputs).

    Raises:
        TypeError: Not tensors, or not floating.
        ValueError: Shapes that do not fit.

    Source:
        Shannon entropy of the rows of OCNet's matrix (arXiv 1809.00916), equation 1.
    """
    check_keys("attention_entropy", query, key, DTYPES)
    n, e, h, w = query.shape
    factor = e**-0.5 if scale is None else scale
    query, key = _wide(query, key)
    shared = None if key is query else key
    with _no_autocast(query.device.type):
        context, lse, _ = torch.ops.ocnet.oc_attention_fwd(
            query, shared, key, scale, backend, False
        )
    expected = factor * (query * context).sum(1)
    entropy: Tensor = (lse.reshape(n, h, w) - expected).clamp_min(0)
    return entropy


def _check_labels(name: str, argument: str, labels: Tensor, of: str, pixels: Tensor) -> None:
    check_integers(name, argument, labels)
    check_same(name, argument, "device", labels.device, of, pixels.device)
    n, _, h, w = pixels.shape
    if labels.shape != (n, h, w):
        raise ValueError(
            f"{name}: {argument} must have the images and pixels of {of}, ({n}, {h}, {w}), "
            f"got {shape_of(labels)}"
        )


def _wide(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Widen both to float32; one tensor stays one."""
    wide = torch.promote_types(query.dtype, torch.float32)
    widened = query.to(wide)
    return widened, widened if key is query else key.to(wide)


def _no_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Sums over many pixels are made in full precision whatever surrounds the call."""
    known = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if known else contextlib.nullcontext()


def _one_hot(labels: Tensor, classes: int, like: Tensor) -> Tensor:
    """Return ``(N, classes, H, W)``; all zero where there is no class."""
    every = torch.arange(classes, device=labels.device).reshape(1, classes, 1, 1)
    return (labels.unsqueeze(1) == every).to(like.dtype)
