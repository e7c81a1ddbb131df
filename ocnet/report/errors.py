# SPDX-License-Identifier: MIT
"""One picture large: picture, truth, prediction and errors, with the colours of the classes explained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ocnet.report.predictions import WRONG, error_picture
from ocnet.report.style import Array, drawing, show_picture

_MOST_NAMES = 24
_PANEL_INCHES = 5.0
_IGNORED = np.array([1.0, 1.0, 1.0])


def error_figure(
    path: str | Path,
    picture: Array,
    truth: Array,
    prediction: Array,
    class_names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    *,
    title: str,
    ignore_index: int = 255,
) -> None:
    """Write a picture, its truth, a prediction of it, and where that is wrong.

    The legend names the classes that occur in truth or prediction, the most frequent first, 24 at most; what is
    left is counted in one line.

    Args:
        path: PNG file to write.
        picture: ``(H, W, 3)`` uint8, or ``(H, W)`` grey.
        truth: ``(H, W)``, class numbers or ``ignore_index``.
        prediction: ``(H, W)``, class numbers.
        class_names: Names of the ``K`` classes.
        palette: Their colours, 0 to 255 each for red, green and blue.
        title: Heading of the figure.
        ignore_index: Label that counts neither as right nor as wrong; drawn white.

    Raises:
        ValueError: The arrays differ in size, or names and colours in number.
    """
    for name, labels in (("truth", truth), ("prediction", prediction)):
        if labels.shape != picture.shape[:2]:
            raise ValueError(
                f"error_figure: {name} must have shape {picture.shape[:2]}, got {labels.shape}"
            )
    if len(palette) != len(class_names):
        raise ValueError(
            f"error_figure: palette must have {len(class_names)} colours, got {len(palette)}"
        )
    colours = np.vstack([np.array(palette) / 255.0, _IGNORED])
    counted = truth != ignore_index
    wrong = counted & (prediction != truth)
    # Heights follow the picture, within what is still a page.
    height = _PANEL_INCHES * min(max(picture.shape[0] / picture.shape[1], 0.4), 1.6)
    with drawing(path, 2 * _PANEL_INCHES + 2.6, 2 * height + 1.2, title) as figure:
        axes = figure.subplots(2, 2)
        panels = {
            "picture": picture,
            "truth": _painted(truth, colours),
            "prediction": _painted(prediction, colours),
            _error_heading(wrong, counted): _errors(picture, wrong, counted),
        }
        for axis, (heading, panel) in zip(axes.ravel(), panels.items(), strict=True):
            show_picture(axis, panel)
            axis.set_title(heading)
            # Pixels without a class are as white as the page; the frame shows where the picture ends.
            axis.spines[:].set(visible=True, linewidth=0.5, color="#999999")
        _legend(figure, truth, prediction, class_names, colours, bool(counted.all()))


def _painted(labels: Array, colours: Array) -> Array:
    """Give class numbers their colours; all other labels have the last one."""
    count = len(colours) - 1
    inside = (labels >= 0) & (labels < count)
    painted: Array = colours[np.where(inside, labels, count)]
    return painted


def _error_heading(wrong: Array, counted: Array) -> str:
    if not counted.any():
        return "errors (no pixel has a class)"
    return f"errors ({wrong.sum() / counted.sum():.1%} of the pixels)"


def _errors(picture: Array, wrong: Array, counted: Array) -> Array:
    painted = error_picture(picture.astype(np.float64), wrong)
    painted[~counted] = _IGNORED
    return painted


def _legend(
    figure: Any,
    truth: Array,
    prediction: Array,
    class_names: Sequence[str],
    colours: Array,
    complete: bool,
) -> None:
    """Name the colours that occur, the most frequent first."""
    from matplotlib.patches import Patch

    def patch(colour: Array, label: str) -> Any:
        return Patch(facecolor=tuple(colour), edgecolor="black", linewidth=0.5, label=label)

    labels = np.concatenate([truth.ravel(), prediction.ravel()])
    labels = labels[(labels >= 0) & (labels < len(class_names))]
    pixels = np.bincount(labels, minlength=len(class_names))
    order = np.argsort(-pixels, kind="stable")[: np.count_nonzero(pixels)]
    patches = [patch(colours[k], class_names[k]) for k in order[:_MOST_NAMES]]
    others = len(order) - len(patches)
    if others:
        share = pixels[order[_MOST_NAMES:]].sum() / pixels.sum()
        patches.append(
            Patch(facecolor="none", edgecolor="none", label=f"{others} others ({share:.1%})")
        )
    if not complete:
        patches.append(patch(_IGNORED, "no class"))
    patches.append(patch(WRONG, "wrong pixel"))
    figure.legend(handles=patches, loc="outside right upper", frameon=False)
