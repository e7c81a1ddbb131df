# SPDX-License-Identifier: MIT
"""Triton back end: NVIDIA GPUs of compute capability 8.0 and later, forward and backward.

Triton is imported by the first call that needs it, so this module imports without it.
"""

import contextlib
import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from ocnet._env import triton_interpreted
from ocnet.ops._backends import SUPPORTED, Support
from ocnet.ops.spatial_gather import configs
from ocnet.ops.spatial_gather.problem import BackwardCall, ForwardCall, Problem, refuse_common

MIN_CAPABILITY = (8, 0)


@functools.cache
def _kernels() -> Any:
    return importlib.import_module("ocnet.ops.spatial_gather.triton_kernels")


def supports(problem: Problem) -> Support:
    """Take fp16, bf16 and fp32 on NVIDIA GPUs; in Triton's interpreter, fp16 and fp32 on the CPU.

    Args:
        problem: The call.

    Returns:
        Whether this back end takes it, and the reason when it does not.
    """
    interpreted = triton_interpreted()
    refusal = refuse_common(problem, "cpu" if interpreted else "cuda")
    if refusal is not None:
        return refusal
    if problem.dtype == torch.float64:
        return Support(False, "its kernels sum in float32, which is not enough for torch.float64")
    if interpreted and problem.dtype == torch.bfloat16:
        return Support(False, "Triton's interpreter does not compute torch.bfloat16 correctly")
    try:
        _kernels()
    except ImportError as error:
        return Support(False, f"triton cannot be imported ({error})", missing_build=True)
    return SUPPORTED if interpreted else _supports_gpu(problem.device)


def _supports_gpu(device: torch.device) -> Support:
    if torch.version.hip is not None:
        return Support(False, "its tiles are made for NVIDIA GPUs, and this torch is built for AMD")
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return Support(
            False,
            "it needs compute capability {}.{} or later, and ".format(*MIN_CAPABILITY)
            + "{} has {}.{}".format(device, *capability),
        )
    return SUPPORTED


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
    with _on(features.device):
        _kernels().spatial_gather_fwd_kernel[
            (n * parts * -(-k // tile.regions) * -(-c // tile.channels),)
        ](
            p_features=features,
            p_logits=logits,
            p_sums=sums,
            p_maxima=maxima,
            p_totals=totals,
            **_strides("f", "nlc", features),
            **_strides("z", "nlk", logits),
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
            **_strides("o", "nkc", out),
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
    with _on(call.features.device):
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
        **_strides("g", "nkc", call.grad_out),
        **_strides("o", "nkc", call.out),
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
        **_strides("g", "nkc", call.grad_out),
        **_strides("f", "nlc", call.features),
        **_strides("z", "nlk", call.logits),
        **_strides("o", "nlk", grad_logits),
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
        **_strides("g", "nkc", call.grad_out),
        **_strides("z", "nlk", call.logits),
        **_strides("o", "nlc", grad_features),
        scale=call.scale,
        L=l,
        C=c,
        K=k,
        **_common(tile, call.tf32),
    )


def _on(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Make the tensors' GPU the current one, which is where Triton launches."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _strides(matrix: str, axes: str, tensor: Tensor) -> dict[str, int]:
    """Return the kernel's names of a tensor's strides with their values."""
    return {
        f"stride_{matrix}{axis}": stride for axis, stride in zip(axes, tensor.stride(), strict=True)
    }


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
