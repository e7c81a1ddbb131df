# SPDX-License-Identifier: MIT
"""``oc_attention``: the public function, its checks, and what ``explain`` says of a call."""

from typing import Any

import torch
from torch import Tensor

from ocnet.ops._backends import AUTO, Backends, register_describer
from ocnet.ops._checks import check_attention
from ocnet.ops.oc_attention.autograd import BACKENDS
from ocnet.ops.oc_attention.problem import DTYPES, Problem

_NAME = "oc_attention"


def oc_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    backend: str = AUTO,
) -> Tensor:
    r"""Gather, for every pixel, the values of all pixels weighted by their similarity to it.

    .. math::
        \mathrm{out}_l = \sum_s \frac{e^{a_{ls}}}{\sum_{s'} e^{a_{ls'}}} \, v_s,
        \qquad a_{ls} = \mathrm{scale} \cdot \langle q_l, k_s \rangle

    over all key positions ``s``, without ever storing the ``L x S`` matrix: extra memory is linear
    in the number of pixels, forward and backward. Passing the same tensor as query and key (OCNet's
    shared transform) is recognised and takes the symmetric backward, which computes one gradient
    for both roles.

    Args:
        query: ``(N, E, H, W)``, float32, float64, bfloat16 or float16; NCHW or channels_last.
        key: ``(N, E, Hk, Wk)``, same dtype and device. ``key is query`` is recognised.
        value: ``(N, Ev, Hk, Wk)``, same dtype and device. ``E`` and ``Ev`` are independent, 1 to
            512 for the compiled back ends.
        scale: Factor of the scores, unitless; ``E ** -0.5`` by default. 0 is honoured.
        backend: ``"auto"``, or one of ``"reference"``, ``"cpu"``, ``"triton"``, ``"cuda"``. A choice
            that cannot be met raises its reason; see :func:`ocnet.ops.explain`.

    Returns:
        ``(N, Ev, H, W)`` in the dtype and the layout of ``query``.

    Raises:
        TypeError: An argument is not a tensor, or dtypes are not floating or differ.
        ValueError: Rank, batch, channels, rows or columns do not fit, or a map is empty.
        NotImplementedError: The back end asked for cannot take this call.
        RuntimeError: The back end asked for is not built.

    Note:
        Scores and sums are float32 (float64 for float64 inputs). Saved for backward: the inputs, the
        output, ``4 * N * L`` bytes, and for 16-bit inputs what rounding took from the output. Results repeat bit for bit. Under ``torch.autocast`` the op
        runs in the autocast dtype. Gradients are of first order.

    Source:
        OCNet (arXiv 1809.00916), section 3, equations 1 and 2. The published code multiplies and
        then scales in the dtype of the features, which overflows in float16; here the scale
        applies to float32 scores.
    """
    _check(query, key, value, scale, backend)
    shared = None if key is query else key
    wants_grad = query.requires_grad or key.requires_grad or value.requires_grad
    keep_residual = torch.is_grad_enabled() and wants_grad
    results = torch.ops.ocnet.oc_attention_fwd(query, shared, value, scale, backend, keep_residual)
    out: Tensor = results[0]
    return out


def _check(query: Any, key: Any, value: Any, scale: Any, backend: str) -> None:
    check_attention(_NAME, query, key, value, scale, DTYPES)
    BACKENDS.check_name(backend)


def _describe(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    backend: str = AUTO,
) -> tuple[Backends[Any], Problem, str]:
    _check(query, key, value, scale, backend)
    return BACKENDS, Problem.of(query, None if key is query else key, value), backend


register_describer(_NAME, _describe)
