# SPDX-License-Identifier: MIT
"""Triton back end: NVIDIA GPUs of compute capability 8.0 and later, in two passes over the map.

Triton is imported by the first call that needs it, so this module imports without it.
"""

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from ocnet.ops import _triton
from ocnet.ops._backends import Support
from ocnet.ops.inplace_abn import configs
from ocnet.ops.inplace_abn.problem import (
    ApplyCall,
    BackwardCall,
    ForwardCall,
    Problem,
    ReduceCall,
    StatsCall,
    elu_floor,
    refuse_common,
)


@functools.cache
def _kernels() -> Any:
    return importlib.import_module("ocnet.ops.inplace_abn.triton_kernels")


# Fused multiply-add, said aloud because the default changes with the version of Triton.
_COMMON = {"enable_fp_fusion": True}
_COMBINE = {"BP": configs.COMBINE_PARTS, "BC": configs.COMBINE_CHANNELS, **_COMMON}


def supports(problem: Problem) -> Support:
    """Tell whether the Triton kernels take the call."""
    return _triton.supports(problem, refuse_common, _kernels)


def stats(call: StatsCall) -> None:
    """Write the packed statistics of the map."""
    with _triton.on(call.x.device):
        _packed(call.x, 1, call.packed)


def _packed(x: Tensor, most: int, one: Tensor | None = None) -> Tensor:
    """Return statistics of at most ``most`` parts of a map, merged into ``one`` if they are more."""
    cut = configs.cut(Problem.of(x), "stats")
    size = 2 * x.shape[1] + 1
    parts = one if one is not None and cut.parts == 1 else _floats(x, cut.parts, size)
    _kernels().inplace_abn_stats_kernel[cut.grid](p_x=x, p_packed=parts, **cut.arguments, **_COMMON)
    return (
        parts if cut.parts <= most else _merged(parts, _floats(x, 1, size) if one is None else one)
    )


def _merged(packed: Tensor, out: Tensor) -> Tensor:
    c = packed.shape[1] // 2
    _kernels().inplace_abn_merge_kernel[(_combining(c),)](
        p_packed=packed, p_out=out, C=c, PACKED=packed.shape[0], **_COMBINE
    )
    return out


def _combining(c: int) -> int:
    """Return how many programs combine parts."""
    return -(-c // configs.COMBINE_CHANNELS)


def _floats(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def forward(call: ForwardCall) -> None:
    """Write the output, and in training the statistics."""
    problem = Problem.of(call.x)
    most = configs.own_parts(problem.rows)
    cut = configs.cut(problem, "forward")
    with _triton.on(call.x.device):
        packed = call.packed
        if call.training and packed is None:
            packed = _packed(call.x, most)
        elif packed is not None and packed.shape[0] > most:
            packed = _merged(packed, _floats(packed, 1, packed.shape[1]))
        _kernels().inplace_abn_fwd_kernel[cut.grid](
            p_x=call.x,
            p_residual=call.residual,
            p_out=call.out,
            p_weight=call.weight,
            p_bias=call.bias,
            p_slope=call.slope,
            p_packed=packed if call.training else None,
            p_running_mean=call.running_mean,
            p_running_var=call.running_var,
            p_mean=call.mean,
            p_var=call.var,
            p_new_mean=call.new_mean,
            p_new_var=call.new_var,
            momentum=float(call.momentum),
            keep=1.0 - call.momentum,
            eps=float(call.eps),
            PACKED=1 if packed is None else packed.shape[0],
            **_pointwise(call),
            **cut.arguments,
            **_COMMON,
            BP=most,
        )


def _pointwise(call: ForwardCall | ReduceCall | ApplyCall | BackwardCall) -> dict[str, Any]:
    return {
        "scale_eps": float(call.scale_eps),
        "param": float(call.param),
        "ACTIVATION": call.activation,
        "SIGNED": call.signed,
    }


def reduce(call: ReduceCall) -> None:
    """Write the sums, and the gradients of vectors."""
    with _triton.on(call.out.device):
        parts = _parts(call)
        _pass(call, "reduce", p_parts=parts, p_count=call.total, CLAMP=call.total is not None)
        _finish(call, parts, call.sums)


def apply(call: ApplyCall) -> None:
    """Write the gradients of the maps."""
    with _triton.on(call.out.device):
        _pass(
            call,
            "apply",
            p_sums=None if call.grad_x is None else call.sums,
            p_count=call.total,
            CLAMP=call.total is not None,
            **_maps(call),
        )


def backward(call: BackwardCall) -> None:
    """Write the gradients that are not ``None``."""
    with _triton.on(call.out.device):
        if call.training:
            _backward_training(call)
        else:
            _backward_frozen(call)


def _wants_vectors(call: BackwardCall) -> bool:
    vectors = (call.grad_weight, call.grad_bias, call.grad_slope)
    return any(vector is not None for vector in vectors)


def _backward_training(call: BackwardCall) -> None:
    count: dict[str, Any] = {"count": float(Problem.of(call.out).per_channel), "CLAMP": True}
    sums, added, vectors = None, 1, {}
    if call.grad_x is not None or _wants_vectors(call):
        sums = _parts(call)
        _pass(call, "reduce", p_parts=sums, **count)
        added = sums.shape[0]
        if call.grad_x is None or added > configs.own_parts(Problem.of(call.out).rows):
            added, one = 1, _floats(call.out, 2, call.out.shape[1])
            _finish(call, sums, one)
            sums = one
        else:
            vectors = _vectors(call)
    if call.grad_x is not None or call.grad_residual is not None:
        used = None if call.grad_x is None else sums
        _pass(call, "apply", p_sums=used, ADDED=added, **count, **_maps(call), **vectors)


def _backward_frozen(call: BackwardCall) -> None:
    # Gradients of maps need no sums, so one pass makes everything.
    if _wants_vectors(call):
        parts = _parts(call)
        _pass(call, "reduce", p_parts=parts, **_maps(call))
        _finish(call, parts, None)
    elif call.grad_x is not None or call.grad_residual is not None:
        _pass(call, "apply", **_maps(call))


_Backward = ReduceCall | ApplyCall | BackwardCall


def _parts(call: _Backward) -> Tensor:
    """Return where the parts of a map leave their three sums."""
    problem = Problem.of(call.out)
    return _floats(call.out, configs.cut(problem, "reduce").parts, 3, problem.C)


def _pass(call: _Backward, kernel: configs.Kernel, **arguments: Any) -> None:
    """Launch one pass over the output and its gradient; absent arguments are ``None``, or nothing."""
    cut = configs.cut(Problem.of(call.out), kernel)
    given = {**_NOTHING, **arguments}
    sums_slopes = given["p_parts"] is not None and getattr(call, "grad_slope", None) is not None
    _kernels().inplace_abn_bwd_kernel[cut.grid](
        p_out=call.out,
        p_residual=call.residual,
        p_grad_out=call.grad_out,
        p_weight=call.weight,
        p_bias=call.bias,
        p_slope=call.slope,
        p_var=getattr(call, "var", None),
        eps=float(getattr(call, "eps", 0.0)),
        floor=-1.0 + elu_floor(call.out.dtype),
        SLOPES=sums_slopes,
        BP=configs.own_parts(cut.arguments["ROWS"]),
        **_pointwise(call),
        **given,
        **cut.arguments,
        **_COMMON,
    )


_NOTHING: dict[str, Any] = {
    **dict.fromkeys(("p_sums", "p_count", "p_parts", "p_grad_x", "p_grad_residual")),
    **dict.fromkeys(("p_grad_weight", "p_grad_bias", "p_grad_slope")),
    "count": 0.0,
    "ADDED": 1,
    "CLAMP": False,
}


def _maps(call: ApplyCall | BackwardCall) -> dict[str, Any]:
    return {"p_grad_x": call.grad_x, "p_grad_residual": call.grad_residual}


def _vectors(call: ReduceCall | BackwardCall) -> dict[str, Any]:
    names = ("grad_weight", "grad_bias", "grad_slope")
    return {f"p_{name}": getattr(call, name) for name in names}


def _finish(call: ReduceCall | BackwardCall, parts: Tensor, sums: Tensor | None) -> None:
    """Add up the parts' sums, and write the gradients of vectors."""
    added, _, c = parts.shape
    _kernels().inplace_abn_finish_kernel[(_combining(c),)](
        p_parts=parts,
        p_sums=sums,
        p_weight=call.weight,
        **_vectors(call),
        scale_eps=float(call.scale_eps),
        C=c,
        ADDED=added,
        SIGNED=call.signed,
        **_COMBINE,
    )
