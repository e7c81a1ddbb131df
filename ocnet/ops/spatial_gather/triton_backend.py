# SPDX-License-Identifier: MIT
"""Triton back end: NVIDIA GPUs of compute capability 8.0 and later, forward and backward.

Triton is imported by the first call that needs it, so this module imports without it.
"""

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from ocnet.ops import _triton
from ocnet.ops._backends import Support
from ocnet.ops.spatial_gather import configs
from ocnet.ops.spatial_gather.problem import BackwardCall, ForwardCall, Problem, refuse_common


@functools.cache
def _kernels() -> Any:
    return importlib.import_module("ocnet.ops.spatial_gather.triton_kernels")


def supports(problem: Problem) -> Support:
    """Tell whether the Triton kernels take the call."""
    return _triton.supports(problem, refuse_common, _kernels)


def forward(call: ForwardCall) -> None:
    """Write the outputs of the call."""
    features, logits, scale, tf32, out, lse, residual = call
    n, l, c = features.shape
    k = logits.shape[2]
    kernel: configs.Kernel = "forward" if features.stride(2) == 1 else "forward_apart"
    tile = configs.choose(kernel, features.element_size(), k)
    parts, length = configs.parts(n, l, k, c, tile)
    sums, maxima, totals = (
        torch.empty(shape, dtype=torch.float32, device=features.device)
        for shape in ((n, parts, k, c), (n, parts, k), (n, parts, k))
    )
    with _triton.on(features.device):
        _kernels().spatial_gather_fwd_kernel[
            (n * parts * -(-k // tile.regions) * -(-c // tile.channels),)
        ](
            p_features=features,
            p_logits=logits,
            p_sums=sums,
            p_maxima=maxima,
            p_totals=totals,
            **_triton.strides("f", "nlc", features),
            **_triton.strides("z", "nlk", logits),
            scale=scale,
            L=l,
            C=c,
            K=k,
            PARTS=parts,
            PART=length,
            **_common(tile, tf32),
        )
        _kernels().spatial_gather_combine_kernel[(n * k * -(-c // configs.COMBINE_CHANNELS),)](
            p_sums=sums,
            p_maxima=maxima,
            p_totals=totals,
            p_out=out,
            p_lse=lse,
            p_residual=out if residual is None else residual,
            **_triton.strides("o", "nkc", out),
            C=c,
            K=k,
            PARTS=parts,
            MOST_PARTS=configs.MOST_PARTS,
            BP=configs.COMBINE_PARTS,
            BC=configs.COMBINE_CHANNELS,
            RESIDUAL=residual is not None,
            enable_fp_fusion=True,
        )


def backward(call: BackwardCall) -> None:
    """Write the gradients that are not ``None``."""
    with _triton.on(call.features.device):
        if call.grad_logits is not None:
            _backward_logits(call, call.grad_logits)
        if call.grad_features is not None:
            _backward_features(call, call.grad_features)


def _backward_logits(call: BackwardCall, grad_logits: Tensor) -> None:
    n, l, c = call.features.shape
    k = call.logits.shape[2]
    delta = torch.empty_like(call.lse)
    _kernels().spatial_gather_delta_kernel[(n * -(-k // configs.DELTA_REGIONS),)](
        p_grad_out=call.grad_out,
        p_out=call.out,
        p_residual=call.out if call.residual is None else call.residual,
        p_delta=delta,
        **_triton.strides("g", "nkc", call.grad_out),
        **_triton.strides("o", "nkc", call.out),
        K=k,
        C=c,
        BK=configs.DELTA_REGIONS,
        BC=configs.DELTA_CHANNELS,
        RESIDUAL=call.residual is not None,
        PRECISION=_precision(call.tf32),
        enable_fp_fusion=True,
    )
    tile = configs.choose("logits", call.features.element_size(), k)
    grid = (n * -(-l // tile.positions) * -(-k // tile.regions),)
    _kernels().spatial_gather_bwd_logits_kernel[grid](
        p_grad_out=call.grad_out,
        p_features=call.features,
        p_logits=call.logits,
        p_lse=call.lse,
        p_delta=delta,
        p_grad_logits=grad_logits,
        **_triton.strides("g", "nkc", call.grad_out),
        **_triton.strides("f", "nlc", call.features),
        **_triton.strides("z", "nlk", call.logits),
        **_triton.strides("o", "nlk", grad_logits),
        scale=call.scale,
        L=l,
        C=c,
        K=k,
        **_common(tile, call.tf32),
    )


def _backward_features(call: BackwardCall, grad_features: Tensor) -> None:
    n, l, c = call.features.shape
    k = call.logits.shape[2]
    tile = configs.choose("features", call.features.element_size(), k)
    grid = (n * -(-l // tile.positions) * -(-c // tile.channels),)
    _kernels().spatial_gather_bwd_features_kernel[grid](
        p_grad_out=call.grad_out,
        p_logits=call.logits,
        p_lse=call.lse,
        p_grad_features=grad_features,
        **_triton.strides("g", "nkc", call.grad_out),
        **_triton.strides("z", "nlk", call.logits),
        **_triton.strides("o", "nlc", grad_features),
        scale=call.scale,
        L=l,
        C=c,
        K=k,
        **_common(tile, call.tf32),
    )


def _precision(tf32: bool) -> str:
    return "tf32" if tf32 else "ieee"


def _common(tile: configs.Tile, tf32: bool) -> dict[str, Any]:
    """Return the arguments that the kernels with products share."""
    return {
        "BL": tile.positions,
        "BK": tile.regions,
        "BC": tile.channels,
        "PRECISION": _precision(tf32),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        # fused multiply-add, said aloud because the default changes with the version of Triton
        "enable_fp_fusion": True,
    }
