# SPDX-License-Identifier: MIT
"""Logits of whole images, at the resolution of the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ocnet.data import PictureTransform

Network = Callable[[Tensor], Any]
"""Maps ``(N, C, H, W)`` to something whose ``main`` is logits; a module, or any other callable."""


@contextmanager
def evaluating(model: Network) -> Iterator[None]:
    """Put a model into evaluation mode, without gradients, and each of its modules back on leaving.

    Args:
        model: a module; other callables have no mode and are left alone.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    if isinstance(model, nn.Module):
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        # One by one: layers that are frozen stay in evaluation mode while the others train.
        for module, training in zip(modules, modes, strict=True):
            module.training = training


def predict_logits(model: Network, image: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Return the logits of an image of any size, for every pixel of it.

    The model sees the whole image at once; its output is enlarged bilinearly with aligned corners,
    as the loss does in training. The model is used in evaluation mode and left in the mode it was in.

    Args:
        model: maps ``(N, C, H, W)`` to something whose ``main`` is ``(N, K, h, w)``.
        image: ``(C, H, W)`` or ``(N, C, H, W)``, on the device of the model.
        size: rows and columns of the result; default: those of the image.

    Returns:
        ``(K, H, W)`` or ``(N, K, H, W)`` (rows and columns as ``size`` says), fp32 (fp64 if the model
        computes in it).

    Raises:
        ValueError: ``image`` has another number of dimensions.

    Source: OCNet's evaluation enlarges logits in the same way (``align_corners=True``).
    """
    if image.ndim not in (3, 4):
        raise ValueError(
            f"predict_logits: image must be (C, H, W) or (N, C, H, W), got {tuple(image.shape)}"
        )
    batch = image if image.ndim == 4 else image[None]
    with evaluating(model):
        logits = resized(raw_logits(model, batch), batch.shape[-2:] if size is None else size)
    return logits if image.ndim == 4 else logits[0]


def raw_logits(model: Network, images: Tensor) -> Tensor:
    """Return what a network says, at its own resolution, in fp32 (fp64 if it computes in it)."""
    logits: Tensor = model(images).main
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps ``(N, C, H, W)`` at another size: bilinear with aligned corners."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def classify_picture(
    model: Network,
    transform: PictureTransform,
    picture: NDArray[np.uint8],
    *,
    max_side: int | None = None,
    device: torch.device | str = "cpu",
) -> NDArray[np.int64]:
    """Return the class of every pixel of a picture.

    Args:
        model: on ``device``; maps ``(N, C, H, W)`` to something whose ``main`` is logits.
        transform: makes the model's input out of the picture.
        picture: ``(H, W, 3)`` uint8.
        max_side: pictures with a longer side are shown to the model reduced to it, pixels; the
            logits are enlarged to the full size all the same. None: no limit.
        device: where the model is.

    Returns:
        ``(H, W)`` int64.

    Raises:
        ValueError: ``max_side`` is below 1.
    """
    size = (picture.shape[0], picture.shape[1])
    shown = transform(reduce_picture(picture, max_side)).to(device)
    classes: NDArray[np.int64] = predict_logits(model, shown, size=size).argmax(0).cpu().numpy()
    return classes


def reduce_picture(picture: NDArray[np.uint8], max_side: int | None) -> NDArray[np.uint8]:
    """Return a picture with no side longer than a limit, and the same shape otherwise.

    Args:
        picture: ``(H, W, 3)`` uint8.
        max_side: longest side, pixels; None: no limit.

    Returns:
        The picture itself, or one made of means over areas of it.

    Raises:
        ValueError: ``max_side`` is below 1.
    """
    if max_side is not None and max_side < 1:
        raise ValueError(f"reduce_picture: max_side must be at least 1, got {max_side}")
    height, width = picture.shape[:2]
    if max_side is None or max(height, width) <= max_side:
        return picture
    factor = max_side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    reduced: NDArray[np.uint8] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return reduced
