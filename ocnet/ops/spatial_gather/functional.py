# SPDX-License-Identifier: MIT
"""``spatial_gather``: the public function, its checks, and what ``explain`` says of a call."""

from typing import Any

import torch
from torch import Tensor

from ocnet.ops._backends import AUTO, Backends, register_describer
from ocnet.ops._checks import check_map, check_same, shape_of
from ocnet.ops.spatial_gather.autograd import BACKENDS
from ocnet.ops.spatial_gather.problem import DTYPES, Problem

_NAME = "spatial_gather"


def spatial_gather(
    features: Tensor, logits: Tensor, scale: float = 1.0, *, backend: str = AUTO
) -> Tensor:
    r"""Gather one feature for each region: the mean of all pixels, weighted by how much they belong.

    .. math::
        \mathrm{context}_{ck} = \sum_l \frac{e^{a_{kl}}}{\sum_{l'} e^{a_{kl'}}} \, f_{cl},
        \qquad a_{kl} = \mathrm{scale} \cdot z_{kl}

    over all positions ``l``: a softmax over space, not over classes. The features are read once
    forward and once backward, and the weights are never stored.

    Args:
        features: ``(N, C, H, W)``, float32, float64, bfloat16 or float16; NCHW or channels_last.
        logits: ``(N, K, H, W)``, one score for each region and position, same dtype and device. The
            compiled back ends take ``C`` from 1 to 1024 and ``K`` from 1 to 512.
        scale: Factor of the logits, unitless. 0 is honoured: it gives the plain mean.
        backend: ``"auto"``, or one of ``"reference"``, ``"cpu"``, ``"triton"``, ``"cuda"``. A choice
            that cannot be met raises its reason; see :func:`ocnet.ops.explain`.

    Returns:
        ``(N, C, K, 1)`` in the dtype and the layout of ``features``.

    Raises:
        TypeError: An argument is not a tensor, or dtypes are not floating or differ.
        ValueError: Rank, batch, rows or columns do not fit, or a map is empty.
        NotImplementedError: The back end asked for cannot take this call.
        RuntimeError: The back end asked for is not built.

    Note:
        Scores and sums are float32 (float64 for float64 inputs). Saved for backward: the inputs, the
        output, ``4 * N * K`` bytes, and for 16-bit inputs what rounding took from the output.
        Results repeat bit for bit. Under ``torch.autocast`` the op runs in the autocast dtype.
        Gradients, of both inputs, are of first order.

    Source:
        OCR (arXiv 1909.11065), section 3.2, equation 2: object region representations from soft
        object regions.
    """
    _check(features, logits, scale, backend)
    wants_grad = features.requires_grad or logits.requires_grad
    keep_residual = torch.is_grad_enabled() and wants_grad
    results = torch.ops.ocnet.spatial_gather_fwd(features, logits, scale, backend, keep_residual)
    context: Tensor = results[0]
    return context


def _check(features: Any, logits: Any, scale: Any, backend: str) -> None:
    for name, pixels in (("features", features), ("logits", logits)):
        check_map(_NAME, name, pixels, DTYPES)
    check_same(_NAME, "logits", "device", logits.device, "features", features.device)
    # Autocast brings both to one dtype.
    if not _autocasts(features.device.type):
        check_same(_NAME, "logits", "dtype", logits.dtype, "features", features.dtype)
    if logits.shape[0] != features.shape[0]:
        raise ValueError(
            f"{_NAME}: logits must have the batch size of features, {features.shape[0]}, "
            f"got {shape_of(logits)}"
        )
    if logits.shape[2] != features.shape[2] or logits.shape[3] != features.shape[3]:
        raise ValueError(
            f"{_NAME}: logits must have the rows and columns of features, {features.shape[2]} x "
            f"{features.shape[3]}, got {shape_of(logits)}"
        )
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"{_NAME}: scale must be a number, got {type(scale).__name__}")
    BACKENDS.check_name(backend)


def _autocasts(device_type: str) -> bool:
    # Asking of a device that has no autocast (meta) is an error in torch.
    known = torch.amp.is_autocast_available(device_type)
    return known and torch.is_autocast_enabled(device_type)


def _describe(
    features: Tensor, logits: Tensor, scale: float = 1.0, *, backend: str = AUTO
) -> tuple[Backends[Any], Problem, str]:
    _check(features, logits, scale, backend)
    return BACKENDS, Problem.of(features, logits), backend


register_describer(_NAME, _describe)
