# SPDX-License-Identifier: MIT
"""What the pixels of an image attend to."""

import torch
from torch import Tensor, nn

from ocnet.modules import ObjectContext
from ocnet.modules.points import rescale_points


def attention_maps(model: nn.Module, images: Tensor, points: Tensor) -> Tensor:
    """Return the attention maps of chosen pixels, from the first object-context block of a network.

    The network runs in evaluation mode without gradients; its modes are as before afterwards.

    Args:
        model: A network with an ``ObjectContext`` block.
        images: ``(N, C, H, W)``.
        points: ``(P, 2)`` for all images or ``(N, P, 2)``, integer, rows and columns in the images.
            The nearest pixel of the feature map is taken, corners to corners.

    Returns:
        ``(N, P, h, w)``, non-negative; each map sums to 1. ``h`` and ``w`` are the rows and columns
        of the keys: those of the features, divided by the pooling scale of the block.

    Raises:
        TypeError: ``points`` are not integers.
        ValueError: The network has no object context, or ``points`` are of another shape or outside
            the images.

    Example:
        >>> from ocnet.models import create
        >>> model = create("tiny_base_oc", num_classes=5)
        >>> attention_maps(model, torch.rand(1, 3, 64, 64), torch.tensor([[10, 20]])).shape
        torch.Size([1, 1, 16, 16])
    """
    block = next((m for m in model.modules() if isinstance(m, ObjectContext)), None)
    if block is None:
        raise ValueError(
            "attention_maps: model must have an ObjectContext block, "
            f"got {type(model).__name__} without one"
        )
    size = (images.shape[-2], images.shape[-1])
    # The points are checked before the network runs, which is the long part.
    rescale_points("attention_maps", points, size, size)
    captured: list[Tensor] = []
    handle = block.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            model(images)
            features = captured[0]
            feature_size = (features.shape[-2], features.shape[-1])
            return block.attention_rows(
                features, rescale_points("attention_maps", points, size, feature_size)
            )
    finally:
        handle.remove()
        # Module by module, because a frozen part may be in another mode than the whole.
        for module, training in modes:
            module.training = training
