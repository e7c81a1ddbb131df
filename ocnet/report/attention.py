# SPDX-License-Identifier: MIT
"""Pictures with query crosses and the attention map of each query."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ocnet.report.style import Array, drawing, show_picture

_REGION_COLUMNS = 5


@dataclass(frozen=True)
class AttentionRow:
    """One picture, its query points and their attention.

    Attributes:
        image: ``(H, W)`` grey or ``(H, W, 3)`` colour.
        points: ``(P, 2)`` query points as (row, column) in pixels of ``image``.
        maps: ``(P, h, w)`` attention of each query over the key positions; each sums to 1.
        label: What the row shows, drawn beside it.
        captions: One line for each query, drawn under its map.
    """

    image: Array
    points: Array
    maps: Array
    label: str
    captions: Sequence[str]


def attention_figure(path: str | Path, rows: Sequence[AttentionRow], *, title: str) -> None:
    """Write one row for each picture: the picture with numbered crosses, then each query's map.

    A map is drawn as heat over a darkened picture. Colour is attention relative to the largest weight of
    that map; the number in the corner says how many times the uniform weight that largest one is.

    Args:
        path: PNG file to write.
        rows: The pictures; all with the same number of queries.
        title: Heading of the figure.

    Raises:
        ValueError: A row's points, maps and captions differ in number, or rows do.
    """
    queries = len(rows[0].maps)
    for row in rows:
        counts = {len(row.points), len(row.maps), len(row.captions), queries}
        if len(counts) != 1:
            raise ValueError(
                f"attention_figure: rows must all have {queries} points, maps and captions, "
                f"got {len(row.points)}, {len(row.maps)} and {len(row.captions)}"
            )
    shapes = [row.image.shape[0] / row.image.shape[1] for row in rows]
    height = sum(2.45 * shape + 0.3 for shape in shapes) + 0.8
    with drawing(path, 2.7 * (queries + 1) + 0.8, height, title) as figure:
        axes = figure.subplots(
            len(rows), queries + 1, squeeze=False, gridspec_kw={"height_ratios": shapes}
        )
        heat = None
        for axis_row, row in zip(axes, rows, strict=True):
            show_picture(axis_row[0], row.image)
            axis_row[0].set_ylabel(row.label)
            for number, point in enumerate(row.points, start=1):
                _cross(axis_row[0], point, row.image.shape, str(number))
            for q in range(queries):
                heat = _draw_map(axis_row[q + 1], row, q)
        axes[0, 0].set_title("picture and queries")
        for q in range(queries):
            axes[0, q + 1].set_title(f"where query {q + 1} looks")
        bar = figure.colorbar(heat, ax=axes[:, -1], shrink=0.6, aspect=30, pad=0.03)
        bar.set_label("attention\n(of the map's largest)")


def regions_figure(
    path: str | Path, image: Array, maps: Array, titles: Sequence[str], *, title: str
) -> None:
    """Write a picture and the soft region of each class in it, as heat over a darkened picture.

    Colour is the weight of a pixel relative to the largest one of that map; the number in the corner says
    how many times the uniform weight that largest one is.

    Args:
        path: PNG file to write.
        image: ``(H, W)`` grey or ``(H, W, 3)`` colour.
        maps: ``(K, h, w)``, the weights of each class; each map sums to 1.
        titles: One line for each map.
        title: Heading of the figure.

    Raises:
        ValueError: Maps and titles differ in number, or there are none.
    """
    if len(maps) != len(titles) or len(maps) == 0:
        raise ValueError(
            f"regions_figure: titles must be as many as maps, at least one, got {len(titles)} and "
            f"{len(maps)}"
        )
    columns = min(_REGION_COLUMNS, len(maps) + 1)
    rows = -(-(len(maps) + 1) // columns)
    height = rows * (2.45 * image.shape[0] / image.shape[1] + 0.3) + 0.8
    with drawing(path, 2.7 * columns + 0.8, height, title) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        show_picture(axes[0], image)
        axes[0].set_title("picture")
        heat = None
        for axis, weights, text in zip(axes[1:], maps, titles, strict=False):
            heat = _heat(axis, image, weights)
            axis.set_title(text)
        for axis in axes[len(maps) + 1 :]:
            axis.set_visible(False)
        bar = figure.colorbar(heat, ax=list(axes), shrink=0.6, aspect=30, pad=0.03)
        bar.set_label("weight\n(of the map's largest)")


def _draw_map(axis: Any, row: AttentionRow, q: int) -> Any:
    heat = _heat(axis, row.image, row.maps[q])
    _cross(axis, row.points[q], row.image.shape, str(q + 1))
    axis.set_xlabel(row.captions[q], labelpad=3)
    return heat


def _heat(axis: Any, image: Array, weights: Array) -> Any:
    """Draw weights as heat over a darkened picture, with how far they are from uniform."""
    height, width = image.shape[:2]
    show_picture(axis, _grey(image))
    relative = weights / max(float(weights.max()), np.finfo(np.float64).tiny)
    heat = axis.imshow(
        relative,
        cmap="inferno",
        vmin=0,
        vmax=1,
        alpha=np.clip(0.55 + 0.45 * relative, 0, 1),
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="bilinear",
    )
    axis.text(
        0.97,
        0.97,
        f"max {weights.max() * weights.size:.0f}x uniform",
        transform=axis.transAxes,
        ha="right",
        va="top",
        fontsize=8.5,
        color="white",
        bbox={"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1.5},
    )
    return heat


def _grey(image: Array) -> Array:
    grey: Array = image.mean(-1) if image.ndim == 3 else image
    return grey


def _cross(axis: Any, point: Array, shape: tuple[int, ...], number: str) -> None:
    """Mark a query: a white cross with a black rim, its number on the side where there is room."""
    from matplotlib.patheffects import withStroke

    y, x = float(point[0]), float(point[1])
    axis.plot(x, y, "+", color="black", markersize=15, markeredgewidth=4.5)
    axis.plot(x, y, "+", color="white", markersize=13, markeredgewidth=2.0)
    side = -1 if x > 0.85 * shape[1] else 1
    below = -1 if y < 0.15 * shape[0] else 1
    axis.annotate(
        number,
        (x, y),
        xytext=(9 * side, 9 * below),
        textcoords="offset points",
        ha="center",
        va="center",
        color="white",
        fontweight="bold",
        path_effects=[withStroke(linewidth=2.5, foreground="black")],
    )
