# SPDX-License-Identifier: MIT
"""Cost over the number of tokens, on logarithmic axes, each line labelled at its end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ocnet.report.style import LINE_COLOURS, LINE_MARKERS, LINE_STYLES, drawing

_LABEL_GAP = 0.075


@dataclass(frozen=True)
class Series:
    """One line: what one form of a computation costs at each size.

    Attributes:
        tokens: Sizes that ran, ascending.
        values: Cost at each of them, positive.
        low: Lower end of the spread at each size (a percentile); empty for none.
        high: Upper end of the spread; empty for none.
        missing: For each size that could not run, the predicted cost if one is known. Drawn as a cross.
    """

    tokens: Sequence[int]
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    missing: Mapping[int, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        title: What is measured, with the pass.
        unit: Unit of the values, the label of the vertical axis.
        text: Turns a value into short text with its unit, for the labels at the line ends.
        series: The lines by name; names keep their colour over all panels.
    """

    title: str
    unit: str
    text: Callable[[float], str]
    series: Mapping[str, Series]


def scaling_figure(
    path: str | Path,
    panels: Sequence[Panel],
    sizes: Mapping[int, str],
    *,
    title: str,
    note: str = "",
) -> None:
    """Write one log-log panel beside the other, tokens on the horizontal axis.

    Args:
        path: PNG file to write.
        panels: The plots, left to right.
        sizes: For each number of tokens its map size as text, such as ``{576: "24x24"}``.
        title: Heading of the figure.
        note: A line under the panels: device, data type, how it was measured.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    with drawing(path, 5.9 * len(panels), 4.9, title) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            _draw_panel(axis, panel, names, sizes)
        if note:
            figure.supxlabel(note, fontsize=9, color="#555555")


def _draw_panel(axis: Any, panel: Panel, names: Sequence[str], sizes: Mapping[int, str]) -> None:
    axis.set_title(panel.title)
    axis.set_ylabel(panel.unit)
    axis.set_xlabel("tokens (rows x columns of the map)")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(list(sizes), [f"{tokens}\n{text}" for tokens, text in sizes.items()])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    top = _limits(axis, panel)
    ends: list[tuple[float, str, str]] = []
    for name, series in panel.series.items():
        index = names.index(name)
        colour = LINE_COLOURS[index % len(LINE_COLOURS)]
        if len(series.tokens):
            axis.plot(
                series.tokens,
                series.values,
                color=colour,
                linestyle=LINE_STYLES[index % len(LINE_STYLES)],
                marker=LINE_MARKERS[index % len(LINE_MARKERS)],
            )
            last = panel.text(series.values[-1])
            if series.tokens[-1] != max(sizes):
                last += f" at {sizes[series.tokens[-1]]}"
            ends.append((series.values[-1], f"{name}\n{last}", colour))
        if len(series.low):
            axis.fill_between(series.tokens, series.low, series.high, color=colour, alpha=0.15)
        _draw_missing(axis, panel, series, colour, top)
    _label_ends(axis, ends)


def _limits(axis: Any, panel: Panel) -> float:
    """Fix the vertical range to all values, predicted ones too; return its top."""
    values = [v for s in panel.series.values() for v in (*s.values, *s.low, *s.high)]
    values += [v for s in panel.series.values() for v in s.missing.values() if v is not None]
    low, high = (min(values) / 1.6, max(values) * 1.6) if values else (1.0, 10.0)
    axis.set_ylim(low, high)
    return float(high)


def _draw_missing(axis: Any, panel: Panel, series: Series, colour: str, top: float) -> None:
    for tokens, predicted in series.missing.items():
        height = top / 1.15 if predicted is None else predicted
        text = "out of memory" if predicted is None else f"would need {panel.text(predicted)}"
        axis.plot(tokens, height, "X", color=colour, markersize=11, markeredgecolor="black")
        axis.annotate(
            text,
            (tokens, height),
            xytext=(-9, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=9,
            color=colour,
        )


def _label_ends(axis: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write each line's name and last value right of the plot, pushed apart where they would touch."""
    low, high = np.log(axis.get_ylim())
    ordered = sorted(ends)
    places = [(np.log(value) - low) / (high - low) for value, _, _ in ordered]
    gap = 2 * _LABEL_GAP
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    overshoot = max(0.0, places[-1] - (1 - _LABEL_GAP / 2)) if places else 0.0
    for i in reversed(range(len(places))):
        ceiling = places[i + 1] - gap if i + 1 < len(places) else places[i] - overshoot
        places[i] = min(places[i], ceiling)
    for place, (_, text, colour) in zip(places, ordered, strict=True):
        axis.text(
            1.02,
            place,
            text,
            transform=axis.transAxes,
            color=colour,
            va="center",
            fontweight="bold",
            fontsize=9.5,
            linespacing=1.15,
        )
