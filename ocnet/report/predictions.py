# SPDX-License-Identifier: MIT
"""Image, truth, predictions and error masks side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ocnet.report.style import (
    Array,
    class_colours,
    drawing,
    hide_axes,
    paint_labels,
    show_picture,
)

# Colour of wrong pixels, red, green and blue from 0 to 1.
WRONG = np.array([0.55, 0.0, 0.10])


def predictions_figure(
    path: str | Path,
    images: Array,
    truth: Array,
    predictions: Mapping[str, Array],
    class_names: Sequence[str],
    *,
    title: str,
    ignore_index: int = 255,
) -> None:
    """Write one row for each image: image, truth, then for each predictor its labels and its errors.

    Args:
        path: PNG file to write.
        images: ``(R, H, W)`` grey or ``(R, H, W, 3)`` colour.
        truth: ``(R, H, W)`` integer labels.
        predictions: For each predictor's name, ``(R, H, W)`` integer labels.
        class_names: Names of the ``K`` classes, in label order.
        title: Heading of the figure.
        ignore_index: Label that counts neither as right nor as wrong.

    Raises:
        ValueError: The arrays do not have one label map per image.
    """
    for name, labels in {"truth": truth, **predictions}.items():
        if labels.shape != images.shape[:3]:
            raise ValueError(
                f"predictions_figure: {name} must have shape {images.shape[:3]}, got {labels.shape}"
            )
    rows, columns = len(images), 2 + 2 * len(predictions)
    with drawing(path, 1.75 * columns, 1.95 * rows + 1.0, title) as figure:
        axes = figure.subplots(rows, columns, squeeze=False)
        for r in range(rows):
            show_picture(axes[r, 0], images[r])
            axes[r, 1].imshow(paint_labels(truth[r], len(class_names)))
            valid = truth[r] != ignore_index
            for p, labels in enumerate(predictions.values()):
                wrong = valid & (labels[r] != truth[r])
                axes[r, 2 + 2 * p].imshow(paint_labels(labels[r], len(class_names)))
                axes[r, 3 + 2 * p].imshow(error_picture(images[r], wrong))
                right = 1.0 - wrong.sum() / max(int(valid.sum()), 1)
                axes[r, 3 + 2 * p].set_xlabel(f"{right:.0%} right", labelpad=2)
            for axis in axes[r]:
                hide_axes(axis)
        heads = ["image", "truth"]
        for name in predictions:
            heads += [name, "its errors"]
        for axis, head in zip(axes[0], heads, strict=True):
            axis.set_title(head)
        _legend(figure, class_names)


def error_picture(image: Array, wrong: Array) -> Array:
    """Return a pale grey copy of an image with its wrong pixels painted.

    Args:
        image: ``(H, W)`` grey or ``(H, W, 3)`` colour.
        wrong: ``(H, W)`` boolean.

    Returns:
        ``(H, W, 3)``, 0 to 1.
    """
    grey = image.mean(-1) if image.ndim == 3 else image
    low, high = np.percentile(grey, (0.5, 99.5))
    pale = 0.72 + 0.28 * np.clip((grey - low) / max(high - low, 1e-6), 0, 1)
    picture = np.repeat(pale[..., None], 3, axis=-1)
    picture[wrong] = WRONG
    return picture


def _legend(figure: object, class_names: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    patches = [
        Patch(facecolor=tuple(colour), edgecolor="black", linewidth=0.5, label=name)
        for colour, name in zip(class_colours(len(class_names)), class_names, strict=True)
    ]
    patches.append(Patch(facecolor=tuple(WRONG), label="wrong pixel"))
    figure.legend(  # type: ignore[attr-defined]
        handles=patches, loc="outside lower center", ncols=min(len(patches), 8), frameon=False
    )
