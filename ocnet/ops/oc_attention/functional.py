# SPDX-License-Identifier: MIT
"""``oc_attention``: the public function, its checks, and what ``explain`` says of a call."""

from typing import Any

import torch
from torch import Tensor

from ocnet.ops._backends import AUTO, Backends, register_describer
from ocnet.ops._checks import autocasts, check_attention
from ocnet.ops.oc_attention import float8
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
    fp8: bool = False,
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
        fp8: Whether both products are of 8-bit numbers (e4m3), for inference in bfloat16 and float16;
            see below. Never by itself: it costs accuracy.

    Returns:
        ``(N, Ev, H, W)`` in the dtype and the layout of ``query``.

    Raises:
        TypeError: An argument is not a tensor, or dtypes are not floating or differ, or are not of 16
            bits with ``fp8``.
        ValueError: Rank, batch, channels, rows or columns do not fit, or a map is empty; or a gradient
            is wanted with ``fp8``.
        NotImplementedError: The back end asked for cannot take this call.
        RuntimeError: The back end asked for is not built.

    Note:
        Scores and sums are float32 (float64 for float64 inputs). Saved for backward: the inputs, the
        output, ``4 * N * L`` bytes, and for 16-bit inputs what rounding took from the output. Results repeat bit for bit. Under ``torch.autocast`` the op
        runs in the autocast dtype. Gradients are of first order.

    Note:
        With ``fp8``, a token ``x`` of query or key is rounded as ``x / s`` to e4m3 with
        ``s = max_c |x_c| / 448``, and a channel of value with that of its tokens in an image; where all
        are zero, ``s`` is 1. Weights are rounded as ``2^(8 + a_ls - ceil(max_s a_ls))``, ``a`` in powers
        of two, and divided by the sum of what was rounded. With shared keys the scores stay
        symmetric. A query with a NaN or an infinity has a context of NaN, a key with one makes that of
        all queries of its image NaN, and a value its channel there. ``"cuda"`` (compute capability 9.0)
        and ``"reference"`` take such calls. Errors: docs/ops/oc_attention.md.

    Source:
        OCNet (arXiv 1809.00916), section 3, equations 1 and 2. The published code multiplies and
        then scales in the dtype of the features, which overflows in float16; here the scale
        applies to float32 scores.
    """
    _check(query, key, value, scale, backend, fp8)
    shared = None if key is query else key
    wants_grad = torch.is_grad_enabled() and (
        query.requires_grad or key.requires_grad or value.requires_grad
    )
    if fp8:
        if wants_grad:
            raise ValueError(f"{_NAME}: fp8 must be False where a gradient is wanted, got True")
        context: Tensor = torch.ops.ocnet.oc_attention_fp8(query, shared, value, scale, backend)
        return context
    results = torch.ops.ocnet.oc_attention_fwd(query, shared, value, scale, backend, wants_grad)
    out: Tensor = results[0]
    return out


def _check(query: Any, key: Any, value: Any, scale: Any, backend: str, fp8: bool) -> None:
    # Under autocast other dtypes become one of 16 bits.
    narrow = fp8 and isinstance(query, Tensor) and not autocasts(query.device.type)
    check_attention(_NAME, query, key, value, scale, float8.DTYPES if narrow else DTYPES)
    BACKENDS.check_name(backend)


def _describe(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    backend: str = AUTO,
    fp8: bool = False,
) -> tuple[Backends[Any], Problem, str]:
    _check(query, key, value, scale, backend, fp8)
    backends: Backends[Any] = float8.BACKENDS if fp8 else BACKENDS
    return backends, Problem.of(query, None if key is query else key, value), backend


register_describer(_NAME, _describe)
