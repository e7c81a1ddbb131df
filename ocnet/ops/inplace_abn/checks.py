# SPDX-License-Identifier: MIT
"""Argument checks of ``inplace_abn``: everything that can be said before a number is read."""

import math
from typing import Any

import torch
from torch import Tensor

from ocnet.ops._checks import check_same, shape_of
from ocnet.ops.inplace_abn import collectives
from ocnet.ops.inplace_abn.problem import ACTIVATIONS, DTYPES, SCALE_MODES
from ocnet.ops.inplace_abn.steps import BACKENDS

# Arguments of the op that are checked, by name.
CHECKED = (
    "x", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps",
    "activation", "activation_param", "scale_mode", "scale_eps", "residual", "group", "backend",
)  # fmt: skip


def check_call(
    function: str,
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: Any,
    eps: Any,
    activation: Any,
    activation_param: Any,
    scale_mode: Any,
    scale_eps: Any,
    residual: Any,
    group: Any,
    backend: str,
) -> None:
    """Check a call of activated batch norm.

    Raises:
        TypeError: Not tensors or numbers, or dtypes that are not floating.
        ValueError: Sizes, devices or options do not fit.
    """
    _check_map(function, x)
    for name, values in (
        ("weight", weight),
        ("bias", bias),
        ("running_mean", running_mean),
        ("running_var", running_var),
    ):
        if values is not None:
            _check_vector(function, name, values, x)
    if (running_mean is None) != (running_var is None):
        raise ValueError(
            f"{function}: running_mean and running_var must be given both or neither, got one"
        )
    if not training and running_mean is None:
        raise ValueError(
            f"{function}: running_mean and running_var must be given where training is false, got None"
        )
    _check_scalars(function, x, momentum, eps, scale_mode, scale_eps)
    check_activation(function, activation, activation_param, training)
    if activation == "prelu":
        _check_vector(function, "activation_param", activation_param, x)
    if residual is not None:
        _check_residual(function, x, residual)
    # Over a group the count of the others is not known yet.
    if training and collectives.members(group) is None and x.numel() <= x.shape[1]:
        raise ValueError(
            f"{function}: x must have more than one number per channel in training, because the "
            f"variance of one number is zero, got {shape_of(x)}"
        )
    BACKENDS.check_name(backend)


def check_activation(function: str, activation: Any, param: Any, training: bool) -> None:
    """Check an activation and its parameter.

    Raises:
        TypeError: A parameter that is not a number, or for ``prelu`` not a tensor.
        ValueError: An unknown activation, or one that has no inverse.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"{function}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}"
        )
    if activation == "relu" and training:
        raise ValueError(
            f"{function}: activation must have an inverse where statistics are those of the batch, "
            "because backward recovers the input from the output, got 'relu'; use leaky_relu, "
            "ABN, or frozen statistics"
        )
    if activation == "prelu":
        if not isinstance(param, Tensor):
            raise TypeError(
                f"{function}: activation_param must be a tensor of slopes for prelu, "
                f"got {type(param).__name__}"
            )
        return
    if isinstance(param, bool) or not isinstance(param, (int, float)):
        raise TypeError(
            f"{function}: activation_param must be a number, got {type(param).__name__}"
        )
    if activation in ("leaky_relu", "elu") and not 0 < param < math.inf:
        raise ValueError(
            f"{function}: activation_param must be above 0 and finite for {activation}, whose "
            f"inverse divides by it, got {param}"
        )


def _check_map(function: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{function}: x must be a tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        allowed = ", ".join(_name(dtype) for dtype in DTYPES)
        raise TypeError(f"{function}: x must be one of {allowed}, got {_name(x.dtype)}")
    if x.dim() < 2 or x.shape[1] == 0:
        raise ValueError(
            f"{function}: x must have shape (N, C, ...) with at least one channel, got {shape_of(x)}"
        )


def _check_vector(function: str, name: str, values: Any, x: Tensor) -> None:
    if not isinstance(values, Tensor):
        raise TypeError(f"{function}: {name} must be a tensor, got {type(values).__name__}")
    if not values.is_floating_point():
        raise TypeError(f"{function}: {name} must be floating, got {_name(values.dtype)}")
    if values.shape != x.shape[1:2]:
        raise ValueError(
            f"{function}: {name} must have shape ({x.shape[1]},), got {shape_of(values)}"
        )
    check_same(function, name, "device", values.device, "x", x.device)


def _check_scalars(
    function: str, x: Tensor, momentum: Any, eps: Any, scale_mode: Any, scale_eps: Any
) -> None:
    if isinstance(momentum, Tensor):
        if momentum.numel() != 1:
            raise ValueError(f"{function}: momentum must be one number, got {shape_of(momentum)}")
        check_same(function, "momentum", "device", momentum.device, "x", x.device)
    elif isinstance(momentum, bool) or not isinstance(momentum, (int, float)):
        raise TypeError(f"{function}: momentum must be a number, got {type(momentum).__name__}")
    for name, value in (("eps", eps), ("scale_eps", eps if scale_eps is None else scale_eps)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{function}: {name} must be a number, got {type(value).__name__}")
        if not value > 0:
            raise ValueError(f"{function}: {name} must be above 0, got {value}")
    if scale_mode not in SCALE_MODES:
        raise ValueError(
            f"{function}: scale_mode must be one of {', '.join(SCALE_MODES)}, got {scale_mode!r}"
        )


def _check_residual(function: str, x: Tensor, residual: Any) -> None:
    if not isinstance(residual, Tensor):
        raise TypeError(f"{function}: residual must be a tensor, got {type(residual).__name__}")
    if residual.shape != x.shape:
        raise ValueError(
            f"{function}: residual must have the shape of x, {shape_of(x)}, got {shape_of(residual)}"
        )
    check_same(function, "residual", "device", residual.device, "x", x.device)
    # Under autocast the shortcut may come in another dtype than the convolution's output.
    known = torch.amp.is_autocast_available(x.device.type)
    if not (known and torch.is_autocast_enabled(x.device.type)):
        check_same(function, "residual", "dtype", residual.dtype, "x", x.dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
