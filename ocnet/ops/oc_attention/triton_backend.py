# SPDX-License-Identifier: MIT
"""Triton back end: NVIDIA GPUs of compute capability 8.0 and later, forward and backward.

Triton is imported by the first call that needs it, so this module imports without it. The kernels
read maps whose channels lie side by side; a map that is laid out otherwise (NCHW) is copied first:
one pass over it, where the kernels make a pass per tile.
"""

import contextlib
import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from ocnet._env import triton_interpreted
from ocnet.ops._backends import SUPPORTED, Support
from ocnet.ops.oc_attention import configs
from ocnet.ops.oc_attention.problem import (
    BackwardCall,
    ForwardCall,
    Problem,
    refuse_common,
)

MIN_CAPABILITY = (8, 0)


@functools.cache
def _kernels() -> Any:
    return importlib.import_module("ocnet.ops.oc_attention.triton_kernels")


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
    query, key, value, scale, _tf32, out, lse, residual = call
    query, value = _side_by_side(query), _side_by_side(value)
    key = query if key is None else _side_by_side(key)
    tile = _tile("forward", query, value)
    with _on(query.device):
        _kernels().oc_attention_fwd_kernel[_grid(out, tile)](
            p_query=query,
            p_key=key,
            p_value=value,
            p_out=out,
            p_lse=lse,
            p_residual=out if residual is None else residual,
            RESIDUAL=residual is not None,
            **_strides("q", "nl", query),
            **_strides("k", "ns", key),
            **_strides("v", "ns", value),
            **_strides("o", "nlv", out),
            scale=scale,
            L=query.shape[1],
            S=key.shape[1],
            **_common(tile, query, value),
        )


def backward(call: BackwardCall) -> None:
    """Write the gradients that are not ``None``."""
    grad_out, query, key, value, out, lse, residual, scale, _tf32, *grads = call
    grad_query, grad_key, grad_value = grads
    grad_out, query, value = (_side_by_side(each) for each in (grad_out, query, value))
    keys = query if key is None else _side_by_side(key)
    with _on(query.device):
        if grad_value is not None:
            _backward_value(grad_out, query, keys, value, lse, scale, grad_value)
        if grad_query is None and grad_key is None:
            return
        delta = torch.empty_like(lse)
        _backward_delta(grad_out, out, residual, delta)
        feature = functools.partial(
            _backward_feature, grad_out=grad_out, value=value, lse=lse, delta=delta, scale=scale
        )
        if grad_query is not None:
            feature(query, keys, grad_query, as_query=True, as_key=key is None)
        if grad_key is not None:
            feature(keys, query, grad_key, as_query=False, as_key=True)


def _backward_delta(grad_out: Tensor, out: Tensor, residual: Tensor | None, delta: Tensor) -> None:
    n, l, ev = out.shape
    slice_v = min(configs.DELTA_CHANNELS, configs.padded(ev))
    _kernels().oc_attention_bwd_delta_kernel[(n * -(-l // configs.DELTA_ROWS),)](
        p_grad_out=grad_out,
        p_out=out,
        p_residual=out if residual is None else residual,
        RESIDUAL=residual is not None,
        p_delta=delta,
        **_strides("g", "nlv", grad_out),
        **_strides("o", "nlv", out),
        L=l,
        Ev=ev,
        EVEN_V=configs.padded(ev) == ev,
        BM=configs.DELTA_ROWS,
        BV=slice_v,
        NV=configs.padded(ev) // slice_v,
        enable_fp_fusion=True,
    )


def _backward_value(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lse: Tensor,
    scale: float,
    grad_value: Tensor,
) -> None:
    tile = _tile("value", query, value)
    _kernels().oc_attention_bwd_value_kernel[_grid(grad_value, tile)](
        p_query=query,
        p_key=key,
        p_grad_out=grad_out,
        p_lse=lse,
        p_grad_value=grad_value,
        **_strides("q", "nl", query),
        **_strides("k", "ns", key),
        **_strides("g", "nl", grad_out),
        **_strides("v", "nsv", grad_value),
        scale=scale,
        L=query.shape[1],
        S=key.shape[1],
        **_common(tile, query, value),
    )


def _backward_feature(
    row: Tensor,
    col: Tensor,
    grad_row: Tensor,
    *,
    grad_out: Tensor,
    value: Tensor,
    lse: Tensor,
    delta: Tensor,
    scale: float,
    as_query: bool,
    as_key: bool,
) -> None:
    """Write the gradient of ``row`` in the roles it plays opposite ``col``."""
    kernel: configs.Kernel = "feature_shared" if as_query and as_key else "feature"
    tile = _tile(kernel, row, value)
    _kernels().oc_attention_bwd_feature_kernel[_grid(grad_row, tile)](
        p_row=row,
        p_col=col,
        p_value=value,
        p_grad_out=grad_out,
        p_lse=lse,
        p_delta=delta,
        p_grad_row=grad_row,
        **_strides("r", "nm", row),
        **_strides("c", "ns", col),
        **_strides("v", "ns", value),
        **_strides("g", "nl", grad_out),
        **_strides("o", "nme", grad_row),
        scale=scale,
        ROWS=row.shape[1],
        COLS=col.shape[1],
        AS_QUERY=as_query,
        AS_KEY=as_key,
        BV=tile.slice_v,
        NV=configs.padded(value.shape[2]) // tile.slice_v,
        **_common(tile, row, value),
    )


def _side_by_side(matrix: Tensor) -> Tensor:
    """Return the token matrix with channel stride 1, copied when it has another."""
    return matrix if matrix.stride(2) == 1 else matrix.contiguous()


def _on(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Make the tensors' GPU the current one, which is where Triton launches."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def _tile(kernel: configs.Kernel, query: Tensor, value: Tensor) -> configs.Tile:
    hopper = _is_hopper(query.device)
    return configs.choose(kernel, query.element_size(), hopper, query.shape[2], value.shape[2])


def _grid(written: Tensor, tile: configs.Tile) -> tuple[int, int]:
    """Return the programs that write a ``(N, tokens, channels)`` result; axis 1 is its channels."""
    n, tokens, channels = written.shape
    return n * -(-tokens // tile.rows), configs.padded(channels) // tile.out


def _strides(matrix: str, axes: str, tensor: Tensor) -> dict[str, int]:
    """Return the kernel's names of a tensor's leading strides with their values."""
    return {
        f"stride_{matrix}{axis}": stride
        for axis, stride in zip(axes, tensor.stride(), strict=False)
    }


def _common(tile: configs.Tile, query: Tensor, value: Tensor) -> dict[str, Any]:
    """Return the arguments that the forward, value and feature kernels share."""
    e, ev = query.shape[2], value.shape[2]
    return {
        "E": e,
        "Ev": ev,
        "EVEN_E": configs.padded(e) == e,
        "EVEN_V": configs.padded(ev) == ev,
        "BM": tile.rows,
        "BN": tile.cols,
        "BE": tile.slice_e,
        "NE": configs.padded(e) // tile.slice_e,
        "BO": tile.out,
        "PRECISION": _precision(),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        # fused multiply-add, said aloud because the default changes with the version of Triton
        "enable_fp_fusion": True,
    }


def _precision() -> str:
    """Return how float32 products are rounded: as torch rounds those of its own matmuls.

    Read through the newer of torch's two settings, which follows the older one; the older raises
    where the newer was used.
    """
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
