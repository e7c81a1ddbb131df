# SPDX-License-Identifier: MIT
"""Training curves of one or more runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ocnet.report.style import (
    GREY,
    LINE_COLOURS,
    LINE_MARKERS,
    LINE_STYLES,
    Array,
    drawing,
)

Record = Mapping[str, float]
_PANELS = (
    ("loss", "training loss"),
    ("miou", "validation mIoU"),
    ("lr", "learning rate"),
    ("images_per_s", "images per second"),
)


def curves_figure(
    path: str | Path, histories: Mapping[str, Sequence[Record]], *, title: str
) -> None:
    """Write loss, validation mIoU, learning rate and throughput over training steps.

    Args:
        path: PNG file to write.
        histories: For each run's name its records; a record has ``step`` and any of ``loss``, ``miou``
            (fraction), ``lr`` and ``images_per_s``. Records without a key are left out of its panel.
        title: Heading of the figure.
    """
    with drawing(path, 10.5, 7.0, title) as figure:
        axes = figure.subplots(2, 2)
        for axis, (key, label) in zip(axes.flat, _PANELS, strict=True):
            drawn = [
                _line(axis, i, name, records, key)
                for i, (name, records) in enumerate(histories.items())
            ]
            axis.set_title(label)
            axis.set_xlabel("step")
            axis.set_xlim(left=0)
            if not any(drawn):
                axis.text(
                    0.5, 0.5, "not recorded", transform=axis.transAxes, ha="center", color=GREY
                )
                continue
            if key == "miou":
                axis.set_ylim(0, 1)
            elif key == "lr":
                axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
            else:
                axis.set_ylim(bottom=0)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        if handles:
            figure.legend(
                handles, labels, loc="outside lower center", ncols=len(handles), frameon=False
            )


def _line(axis: Any, index: int, name: str, records: Sequence[Record], key: str) -> bool:
    """Draw one run in one panel; tell whether it had anything to draw."""
    points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
    if not points:
        return False
    steps, values = np.array(points, dtype=float).T
    colour = LINE_COLOURS[index % len(LINE_COLOURS)]
    line = LINE_STYLES[index % len(LINE_STYLES)]
    if key == "miou":
        marker = LINE_MARKERS[index % len(LINE_MARKERS)]
        axis.plot(steps, values, color=colour, linestyle=line, marker=marker, label=name)
        axis.annotate(
            f"{values[-1]:.2f}",
            (steps[-1], values[-1]),
            xytext=(0, 8),
            textcoords="offset points",
            ha="right",
            color=colour,
            fontweight="bold",
        )
    elif key == "loss":
        axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.9)
        axis.plot(steps, smoothed(values), color=colour, linestyle=line, label=name)
    else:
        axis.plot(steps, values, color=colour, linestyle=line, label=name)
    return True


def smoothed(values: Array) -> Array:
    """Return the running mean over a window of a twentieth of the run, shorter at both ends."""
    half = max(1, len(values) // 40)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low = np.maximum(index - half, 0)
    high = np.minimum(index + half + 1, len(values))
    mean: Array = (total[high] - total[low]) / (high - low)
    return mean
