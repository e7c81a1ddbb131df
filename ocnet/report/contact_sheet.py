# SPDX-License-Identifier: MIT
"""Pictures of a data set with their labels laid over, on one page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ocnet.report.style import Array, drawing, hide_axes

_MOST = 12
_COLUMNS = 4
_CELL = 3.2  # inches
_CELL_PIXELS = 480  # more than the cell has on paper
_OPACITY = 0.5
_LEGEND_COLUMNS = 6
_LEGEND_LETTERS = 24
_OUTLINE = (255, 255, 255)
_NO_CLASS = (255, 0, 255)


def contact_sheet(
    path: str | Path,
    rows: Sequence[tuple[Array, Array, str]],
    class_names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    *,
    title: str,
    ignore_index: int = 255,
) -> None:
    """Write up to twelve pictures, four in a row, under the colours of their classes.

    Ignored pixels have no colour and a white outline. Labels that are no class are magenta. The legend names
    the classes that occur.

    Args:
        path: PNG file to write.
        rows: Picture ``(H, W, 3)`` uint8, classes ``(H, W)`` integer, and caption of each.
        class_names: Names of the ``K`` classes, in label order.
        palette: One colour for each class, 0 to 255 for red, green and blue.
        title: Heading of the figure.
        ignore_index: Label of pixels without a class.

    Raises:
        ValueError: There are no pictures or more than twelve, or labels and picture differ in size.
        RuntimeError: matplotlib is not installed.
    """
    if not 1 <= len(rows) <= _MOST:
        raise ValueError(f"contact_sheet: rows must be 1 to {_MOST}, got {len(rows)}")
    for picture, classes, caption in rows:
        if picture.shape != (*classes.shape, 3):
            raise ValueError(
                f"contact_sheet: picture must have shape {(*classes.shape, 3)}, as its labels, got "
                f"{picture.shape} of {caption}"
            )
    entries = _legend_entries(rows, class_names, palette, ignore_index)
    columns = min(_COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    legend = 0.25 * -(-len(entries) // _LEGEND_COLUMNS) + 0.2
    ratio = max(classes.shape[0] / classes.shape[1] for _, classes, _ in rows)
    # Never narrower than the legend.
    width = _CELL * _COLUMNS
    height = lines * (width / columns * min(ratio, 1.25) + 0.3) + legend + 0.5
    with drawing(path, width, height, title) as figure:
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for axis in axes:
            hide_axes(axis)
        for axis, (picture, classes, caption) in zip(axes, rows, strict=False):
            axis.imshow(_painted(*_thinned(picture, classes), palette, ignore_index))
            axis.set_title(caption, fontsize=9)
        _legend(figure, entries)


def _thinned(picture: Array, classes: Array) -> tuple[Array, Array]:
    """Leave rows and columns out of large pictures, the same ones of both."""
    step = max(1, max(classes.shape) // _CELL_PIXELS)
    return picture[::step, ::step], classes[::step, ::step]


def _painted(
    picture: Array, classes: Array, palette: Sequence[tuple[int, int, int]], ignore_index: int
) -> Array:
    """Lay colours over a picture, with outlines of what is ignored."""
    colours = np.array([*palette, _NO_CLASS], dtype=np.float64)
    known = (classes >= 0) & (classes < len(palette))
    over = colours[np.where(known, classes, len(palette))]
    painted = np.rint((1 - _OPACITY) * picture + _OPACITY * over).astype(np.uint8)
    ignored = classes == ignore_index
    painted[ignored] = picture[ignored]
    painted[_edge(ignored)] = _OUTLINE
    return painted


def _edge(mask: Array) -> Array:
    """Return the pixels of a mask that touch pixels outside it; the border of the picture is no edge."""
    wide = np.pad(mask, 1, mode="edge")
    inside = wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    edge: Array = mask & ~inside
    return edge


def _legend_entries(
    rows: Sequence[tuple[Array, Array, str]],
    class_names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    ignore_index: int,
) -> list[tuple[str, Array, str]]:
    """Return text, face and edge colour of all that occurs."""
    values = set(np.concatenate([np.unique(classes) for _, classes, _ in rows]).tolist())
    entries = [
        (name[:_LEGEND_LETTERS], np.array(colour) / 255, "black")
        for number, (name, colour) in enumerate(zip(class_names, palette, strict=True))
        if number in values
    ]
    if ignore_index in values:
        entries.append(("ignored", np.full(3, 0.6), "white"))
    if values - {*range(len(class_names)), ignore_index}:
        entries.append(("unknown value", np.array(_NO_CLASS) / 255, "black"))
    return entries


def _legend(figure: Any, entries: Sequence[tuple[str, Array, str]]) -> None:
    from matplotlib.patches import Patch

    patches = [
        Patch(facecolor=tuple(face), edgecolor=edge, linewidth=1.0, label=name)
        for name, face, edge in entries
    ]
    figure.legend(
        handles=patches,
        loc="outside lower center",
        ncols=min(len(patches), _LEGEND_COLUMNS),
        frameon=False,
    )
