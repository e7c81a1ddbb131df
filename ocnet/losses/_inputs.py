# SPDX-License-Identifier: MIT
"""What every loss does first: check, widen and resize."""

import torch
import torch.nn.functional as F
from torch import Tensor


def prepared(
    name: str, logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return logits at the resolution of the labels, int64 labels, and weights of the logits' dtype.

    16-bit logits are widened to fp32 first. Resizing is bilinear with ``align_corners=True``.

    Args:
        name: Function that messages name.
        logits: ``(N, K, h, w)``, floating.
        target: Labels ``(N, H, W)``, integer, each in ``[0, K)`` or ``ignore_index``.
        weight: ``(K,)``, or ``None``.
        ignore_index: Label of the pixels that do not count.

    Raises:
        TypeError: ``logits`` are not floating, or ``target`` is not integer.
        ValueError: Shapes that do not fit, or a label outside the range. Labels are looked at on the CPU
            only: on a GPU that would wait for the device, and the kernel traps on them.
    """
    _check_shapes(name, logits, target, weight)
    target = target.long()
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_labels(name, target, logits.shape[1], ignore_index)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if logits.shape[-2:] != target.shape[-2:]:
        logits = F.interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=True)
    return logits, target, None if weight is None else weight.to(logits.dtype)


def check_target(name: str, target: Tensor) -> None:
    """Raise unless labels are ``(N, H, W)`` of an integer dtype."""
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"{name}: target must be integer, got {target.dtype}")
    if target.dim() != 3:
        raise ValueError(f"{name}: target must have shape (N, H, W), got {tuple(target.shape)}")


def _check_shapes(name: str, logits: Tensor, target: Tensor, weight: Tensor | None) -> None:
    if not logits.is_floating_point():
        raise TypeError(f"{name}: logits must be floating, got {logits.dtype}")
    check_target(name, target)
    if logits.dim() != 4:
        raise ValueError(f"{name}: logits must have shape (N, K, h, w), got {tuple(logits.shape)}")
    if target.shape[0] != logits.shape[0]:
        raise ValueError(
            f"{name}: target must have shape ({logits.shape[0]}, H, W), got {tuple(target.shape)}"
        )
    if weight is not None and weight.shape != logits.shape[1:2]:
        raise ValueError(
            f"{name}: weight must have shape ({logits.shape[1]},), got {tuple(weight.shape)}"
        )


def _check_labels(name: str, target: Tensor, classes: int, ignore_index: int) -> None:
    outside = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if bool(outside.any()):
        raise ValueError(
            f"{name}: target must hold labels in [0, {classes}) or {ignore_index}, "
            f"got {int(target[outside][0])}"
        )
