# SPDX-License-Identifier: MIT
"""``inplace_abn``: the public function, its checks, and what ``explain`` says of a call."""

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ocnet.ops._backends import AUTO, Backends, register_describer
from ocnet.ops.inplace_abn import collectives
from ocnet.ops.inplace_abn.checks import CHECKED, check_call
from ocnet.ops.inplace_abn.eager import Normalise, Options, check_total, move_by
from ocnet.ops.inplace_abn.layout import in_rows
from ocnet.ops.inplace_abn.problem import Problem
from ocnet.ops.inplace_abn.steps import BACKENDS, Pointwise
from ocnet.ops.inplace_abn.surroundings import (
    NEW,
    OVER_INPUT,
    ConsumedTensor,
    destination,
    is_recomputation,
    is_transformed,
    runs_eagerly,
)
from ocnet.ops.inplace_abn.traced import Transfer

_NAME = "inplace_abn"


def inplace_abn(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    activation: str = "leaky_relu",
    activation_param: float | Tensor = 0.01,
    *,
    scale_mode: str = "abs_eps",
    scale_eps: float | None = None,
    residual: Tensor | None = None,
    exact: bool = False,
    inplace: bool = False,
    group: Any = None,
    layer: str = "",
    backend: str = AUTO,
) -> Tensor:
    r"""Normalise each channel and activate, saving only the output for backward.

    .. math::
        z = \varphi(y + \mathrm{residual}), \qquad
        y_{nchw} = \gamma^e_c \, \frac{x_{nchw} - \mu_c}{\sqrt{\sigma^2_c + \mathrm{eps}}} + \beta_c

    with the statistics of the batch (biased variance) in training and the running ones out of it. The
    backward pass recovers what it needs by inverting the activation and the affine map, so the input
    is not kept: where the next layer keeps its own input, as a convolution does, the layer costs no
    memory at all.

    Args:
        x: ``(N, C)`` or ``(N, C, ...)``, float32, float64, bfloat16 or float16, contiguous or
            channels_last; other layouts are copied.
        weight: ``(C,)`` or ``None``: an effective scale of 1. Any floating dtype, as all vectors.
        bias: ``(C,)`` or ``None``: 0.
        running_mean: ``(C,)`` or ``None``; moved in training, used out of it.
        running_var: Likewise; moved by the unbiased variance.
        training: Normalise with the statistics of the batch, and move the running ones:
            ``running = (1 - momentum) * running + momentum * batch``.
        momentum: A fraction; a tensor of one number is not read on the host.
        eps: Added to the variance.
        activation: ``leaky_relu``, ``elu``, ``identity``, ``prelu`` or, where ``training`` is false,
            ``relu``. In training ReLU cannot be inverted, and is refused.
        activation_param: Slope of ``leaky_relu`` or scale of ``elu``, above 0; for ``prelu`` a tensor
            ``(C,)`` of slopes. A slope of the tensor that is not above 0 and finite makes its channel
            NaN: it is on the device, and is not read on the host.
        scale_mode: What multiplies: ``abs_eps``, ``|weight| + scale_eps``, as in the paper's code;
            ``signed``, ``weight + sign(weight) * scale_eps``, which is plain batch norm to within
            ``scale_eps``. The sign of 0 is +.
        scale_eps: Keeps the scale away from 0; ``eps`` by default. At least 1e-3 is advised for 16
            bits where weights go to 0.
        residual: Added before the activation; like ``x``. It is saved for backward, which costs
            nothing where another layer keeps it anyway.
        exact: With a residual: normalise, then add and activate by torch's ops, keeping the normalised
            map. Costs one map more; pays where the residual is far larger than the scale, see Note.
        inplace: Let the result overwrite ``x``. It saves nothing for backward beyond the default, only
            one buffer for the time of the call. ``x`` cannot be used afterwards: any use raises. Where
            somebody else may read ``x`` (leaves, views, layers that keep their output, checkpointing)
            the result gets memory of its own all the same.
        group: Process group over whose ranks statistics are taken in training; ``None``: this
            process alone. A rank that is not a member is on its own.
        layer: Name of the layer in errors about ranks that do not come.
        backend: ``"auto"``, or one of ``"cpu"``, ``"cuda"``, ``"triton"``, ``"reference"``. A choice
            that cannot be met raises its reason; see :func:`ocnet.ops.explain`.

    Returns:
        The map, of the shape, dtype and layout of ``x``.

    Raises:
        TypeError: An argument is not a tensor or number, or of a dtype that does not fit.
        ValueError: Sizes, devices or options do not fit; one number per channel in training.
        NotImplementedError: The back end asked for cannot take this call.
        RuntimeError: The back end asked for is not built; a rank did not come.

    Note:
        Statistics and sums are float32 (float64 for float64). The branch of the activation is the
        sign bit of the output, so +0 has the derivative of the positive side (torch's ``leaky_relu``
        takes the slope there), and results that underflow keep their branch. The recovered
        normalised number is off by at most about ``u (|y| + |residual| + |bias|) / scale``, with ``u``
        half a unit of the last place of the dtype: 2^-24, 2^-11 in float16, 2^-8 in bfloat16. It is
        held within ``sqrt(count - 1)``, which normalised numbers never leave. With a residual this is
        still more accurate in 16 bits than torch's ops, whose rounding of ``y`` flips branches, until
        the residual is about 20 times the scale; above, ``exact`` is. Results repeat bit for bit.
        Autocast leaves the op alone. Gradients are of first order.

    Source:
        Rota Bulò, Porzi, Kontschieder, CVPR 2018 (arXiv 1712.02616), InPlace-ABN I, equations 1 to 3,
        with the sums of InPlace-ABN II around the bias. Its code differs in rounding 16-bit maps
        several times, deciding the branch by ``z >= 0``, and NaN for saturated ELU.
    """
    check_call(
        _NAME, x, weight, bias, running_mean, running_var, training, momentum, eps, activation,
        activation_param, scale_mode, scale_eps, residual, group, backend,
    )  # fmt: skip
    if residual is not None and residual.dtype != x.dtype:
        residual = residual.to(x.dtype)  # under autocast
    if residual is not None and exact:
        y = inplace_abn(
            x, weight, bias, running_mean, running_var, training, momentum, eps, "identity",
            scale_mode=scale_mode, scale_eps=scale_eps, inplace=inplace, group=group, layer=layer,
            backend=backend,
        )  # fmt: skip
        return _activate(y + residual, activation, activation_param)

    if training and is_recomputation():
        running_mean = running_var = None
    slope = activation_param if isinstance(activation_param, Tensor) else None
    tensors = (x, residual, weight, bias, slope, running_mean, running_var)
    pointwise = Pointwise(
        float(eps if scale_eps is None else scale_eps),
        activation,
        1.0 if isinstance(activation_param, Tensor) else float(activation_param),
        scale_mode == "signed",
        backend,
    )
    eager = runs_eagerly(tensors)
    where = destination(x, inplace, eager)
    others = collectives.members(group) if training else None
    options = Options(training, momentum, float(eps), pointwise, where, others, layer)
    out: Tensor = _normalise(*tensors, options) if eager else _traced(tensors, options)
    if where == OVER_INPUT:
        x.__class__ = ConsumedTensor
    return out


# Not typed in torch.
_normalise: Any = Normalise.apply
_transfer: Any = Transfer.apply


def _traced(tensors: tuple[Any, ...], options: Options) -> Tensor:
    """Call the ops, and move the running statistics to what they return."""
    *maps, running_mean, running_var = tensors
    training, momentum, eps, pointwise, where, group, layer = options
    x, on_host = maps[0], not isinstance(momentum, Tensor)
    # A momentum on the device moves the statistics after the call.
    statistics = (running_mean, running_var) if on_host or not training else (None, None)
    scalars = (training, float(momentum) if on_host else 0.0, eps, *pointwise)
    total = None
    if where == NEW and group is None and not is_transformed():
        out, *batch = torch.ops.ocnet.inplace_abn_fwd(*maps, None, *statistics, *scalars)
    else:
        out, *batch, total = _transfer(*maps, *statistics, *scalars, where, group, layer)
        if group is not None:
            check_total(x, total)
    if training and running_mean is not None:
        running, count = (running_mean, running_var), x.numel() // x.shape[1]
        with torch.no_grad():
            if isinstance(momentum, Tensor):
                move_by(running, batch[:2], momentum, count if group is None else total)
            else:
                torch._foreach_copy_(list(running), batch[2:])
    result: Tensor = out
    return result


def _activate(y: Tensor, activation: str, param: float | Tensor) -> Tensor:
    if isinstance(param, Tensor):
        return F.prelu(y, param.to(y.dtype))
    if activation == "leaky_relu":
        return F.leaky_relu(y, param, inplace=True)
    if activation == "elu":
        return F.elu(y, param, inplace=True)
    return F.relu(y, inplace=True) if activation == "relu" else y


def _describe(*args: Any, **kwargs: Any) -> tuple[Backends[Any], Problem, str]:
    call = inspect.signature(inplace_abn).bind(*args, **kwargs)
    call.apply_defaults()
    told = call.arguments
    check_call(_NAME, **{name: told[name] for name in CHECKED})
    x: Tensor = told["x"]
    n, c = x.shape[:2]
    pixels = math.prod(x.shape[2:])
    rows = in_rows(x) or pixels == 1
    sizes = (1, c, n * pixels) if rows else (n, c, pixels)
    return BACKENDS, Problem(x.device, x.dtype, *sizes, rows), told["backend"]


register_describer(_NAME, _describe)
