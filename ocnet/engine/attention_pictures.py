# SPDX-License-Identifier: MIT
"""Pictures of what a trained network looks at in one photograph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocnet import report
from ocnet.engine.run import Run
from ocnet.evaluation import reduce_picture
from ocnet.models import AttentionView, attention_views
from ocnet.modules.points import rescale_points

Array = NDArray[Any]

# Queries that are chosen where none are given, and most classes whose regions are drawn.
_QUERIES, _REGIONS = 3, 20


def draw_attention(
    path: Path,
    run: Run,
    picture: NDArray[np.uint8],
    classes: NDArray[np.int64],
    *,
    points: Array | None = None,
    max_side: int | None = None,
    image: Tensor | None = None,
) -> None:
    """Write what a network looks at in a picture, one row for each of its views.

    Where it attends from pixels, the maps of query points; where it attends to soft class regions, those.

    Args:
        path: PNG file to write; its folder must exist.
        run: the network.
        picture: ``(H, W, 3)`` uint8.
        classes: ``(H, W)``, what the network makes of it.
        points: ``(P, 2)`` query points, rows and columns in the picture; default: the innermost pixels of
            the largest classes.
        max_side: as in ``ocnet.evaluation.classify_picture``.
        image: ``(C, H, W)``, what the network is given, where it is not made of the picture.

    Raises:
        ValueError: the network attends to nothing, or a point is outside the picture.
        RuntimeError: matplotlib is not installed.
    """
    if points is None:
        points = innermost_points(classes, _QUERIES)
    height, width = picture.shape[:2]
    if image is None:
        image = run.info.picture_transform(reduce_picture(picture, max_side))
    near = rescale_points(
        "draw_attention",
        torch.from_numpy(points),
        (height, width),
        (image.shape[-2], image.shape[-1]),
    )
    views = attention_views(run.model, image[None].to(run.device), near.to(run.device))
    names = run.info.class_names
    of_points = [view for view in views if not view.of_classes]
    if of_points:
        captions = [
            f"query {number}: {names[classes[row, column]]}"
            for number, (row, column) in enumerate(points.tolist(), start=1)
        ]
        rows = [
            report.AttentionRow(picture, points, _maps(view), view.title, captions)
            for view in of_points
        ]
        report.attention_figure(path, rows, title=f"What {run.config.model.name} looks at")
        return
    shares = np.bincount(classes.ravel(), minlength=len(names)) / classes.size
    largest = np.argsort(-shares, kind="stable")[:_REGIONS]
    titles = [f"{names[number]}, {shares[number]:.0%}" for number in largest]
    report.regions_figure(
        path, picture, _maps(views[0])[largest], titles,
        title=f"Soft class regions of {run.config.model.name}, and the share of each class",
    )  # fmt: skip


def innermost_points(classes: NDArray[np.int64], count: int) -> Array:
    """Choose pixels: for each of the largest classes the one farthest from its edges.

    Args:
        classes: ``(H, W)``.
        count: how many at most.

    Returns:
        ``(P, 2)`` int64 rows and columns; fewer than ``count`` where there are fewer classes.
    """
    numbers, sizes = np.unique(classes, return_counts=True)
    largest = numbers[np.argsort(-sizes, kind="stable")][:count]
    return np.array([innermost(classes == number)[1:] for number in largest], dtype=np.int64)


def innermost(region: NDArray[np.bool_]) -> tuple[float, int, int]:
    """Return the largest distance to the region's edge, and where it is; pictures end at an edge."""
    framed = np.pad(region, 1).astype(np.uint8)
    distance = cv2.distanceTransform(framed, cv2.DIST_L2, 3)[1:-1, 1:-1]
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    return float(distance[row, column]), int(row), int(column)


def _maps(view: AttentionView) -> Array:
    maps: Array = view.maps[0].float().cpu().numpy()
    return maps
