# SPDX-License-Identifier: MIT
"""What the pixels of an image attend to, in every network that attends."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ocnet.modules import InterlacedContext, ObjectContext, PyramidOC, SpatialGather
from ocnet.modules.points import rescale_points


@dataclass(frozen=True)
class AttentionView:
    """One way a network looks at an image.

    Attributes:
        title: What it is, in a few words.
        maps: ``(N, P, h, w)``, non-negative: for each point how much it attends to each position of the
            features, each map summing to 1 less what padding, which is not shown, is given; or where
            ``of_classes``, ``(N, K, h, w)``: for each class how much each position counts in its region.
        of_classes: Whether maps are of classes, and not of points.
    """

    title: str
    maps: Tensor
    of_classes: bool = False


def attends(model: nn.Module) -> bool:
    """Tell whether a network has a block that :func:`attention_views` can show."""
    return any(type(module) in _VIEWS for module in model.modules())


def attention_views(model: nn.Module, images: Tensor, points: Tensor) -> list[AttentionView]:
    """Return what chosen pixels attend to, in every block of a network that attends.

    Object context has one view for each block; Pyramid-OC one for each grid, zero outside the cell; ISA two
    for each factor, of its far and its near pixels; OCR one, of soft class regions. The network runs in
    evaluation mode without gradients; its modes are as before afterwards.

    Args:
        model: A network.
        images: ``(N, C, H, W)``.
        points: ``(P, 2)`` for all images or ``(N, P, 2)``, integer, rows and columns in the images.
            The nearest pixel of the feature map is taken, corners to corners.

    Returns:
        The views, in the order of the blocks.

    Raises:
        TypeError: ``points`` are not integers.
        ValueError: The network attends to nothing, or ``points`` are of another shape or outside the
            images.

    Source: OCNet (arXiv 1809.00916), figures of object context; openseg's pictures of OCR's regions.

    Example:
        >>> from ocnet.models import create
        >>> model = create("tiny_base_oc", num_classes=5)
        >>> attention_views(model, torch.rand(1, 3, 64, 64), torch.tensor([[10, 20]]))[0].maps.shape
        torch.Size([1, 1, 16, 16])
    """
    blocks = [module for module in model.modules() if type(module) in _VIEWS]
    if not blocks:
        raise ValueError(
            "attention_views: model must have object context in one of its forms, "
            f"got {type(model).__name__} without any"
        )
    size = (images.shape[-2], images.shape[-1])
    # The points are checked before the network runs, which is the long part.
    rescale_points("attention_views", points, size, size)
    seen: dict[nn.Module, tuple[Any, ...]] = {}
    handles = [block.register_forward_pre_hook(seen.__setitem__) for block in blocks]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            model(images)
            views: list[AttentionView] = []
            for block in blocks:
                features: Tensor = seen[block][0]
                near = rescale_points(
                    "attention_views", points, size, (features.shape[-2], features.shape[-1])
                )
                views += _VIEWS[type(block)](block, seen[block], near)
            return views
    finally:
        for handle in handles:
            handle.remove()
        # Module by module, because a frozen part may be in another mode than the whole.
        for module, training in modes:
            module.training = training


def _of_object_context(block: Any, inputs: tuple[Any, ...], points: Tensor) -> list[AttentionView]:
    pooled = f", {block.scale} x {block.scale} pooled" if block.scale > 1 else ""
    return [AttentionView(f"object context{pooled}", block.attention_rows(inputs[0], points))]


def _of_pyramid(block: Any, inputs: tuple[Any, ...], points: Tensor) -> list[AttentionView]:
    maps = block.attention_rows(inputs[0], points)
    titles = ["whole map" if size == 1 else f"{size} x {size} cells" for size in block.sizes]
    return [AttentionView(title, each) for title, each in zip(titles, maps, strict=True)]


def _of_interlaced(block: Any, inputs: tuple[Any, ...], points: Tensor) -> list[AttentionView]:
    rows, columns = block.down_factor
    far, near = block.attention_rows(inputs[0], points)
    return [
        AttentionView(f"long range, every {rows} x {columns}", far),
        AttentionView(f"short range, {rows} x {columns} blocks", near),
    ]


def _of_regions(block: Any, inputs: tuple[Any, ...], points: Tensor) -> list[AttentionView]:
    return [AttentionView("soft class regions", block.regions(inputs[1]), of_classes=True)]


_VIEWS: dict[type[nn.Module], Callable[[Any, tuple[Any, ...], Tensor], list[AttentionView]]] = {
    ObjectContext: _of_object_context,
    PyramidOC: _of_pyramid,
    InterlacedContext: _of_interlaced,
    SpatialGather: _of_regions,
}
