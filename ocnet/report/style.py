# SPDX-License-Identifier: MIT
"""How every picture looks: colours, fonts, sizes, and saving to PNG."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Okabe and Ito's eight colours, told apart with every common form of colour blindness.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#8C8C8C"

CLASS_COLOURS = (ORANGE, SKY, GREEN, VERMILLION, PURPLE, YELLOW, BLUE, BLACK)
LINE_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, BLACK)
LINE_MARKERS = ("o", "s", "^", "D", "v", "X")
LINE_STYLES = ("-", "--", "-.", ":", "-", "--")

_RC = {
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.labelsize": 10.5,
    "legend.fontsize": 10,
    "figure.titlesize": 13,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#D9D9D9",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "savefig.facecolor": "white",
}
_DPI = 120


def check_matplotlib() -> None:
    """Raise unless pictures can be drawn.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise RuntimeError(
            "report: matplotlib must be installed to draw pictures, got none; "
            "run: pip install 'ocnet[viz]'"
        ) from error


@contextmanager
def drawing(path: str | Path, width: float, height: float, title: str) -> Iterator[Any]:
    """Yield an empty titled figure and write it to ``path`` on leaving the block.

    The figure never touches matplotlib's global state or a display.

    Args:
        path: PNG file to write; its folder must exist.
        width: Width in inches.
        height: Height in inches.
        title: Heading of the whole figure.

    Yields:
        A ``matplotlib.figure.Figure``.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    check_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.suptitle(title)
        yield figure
        figure.savefig(path, dpi=_DPI, format="png")


def class_colours(count: int) -> Array:
    """Return ``(count, 3)`` float colours in [0, 1], repeating in darker shades past eight."""
    base = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in CLASS_COLOURS]) / 255.0
    index = np.arange(count)
    shade = 0.6 ** (index // len(base))
    colours: Array = base[index % len(base)] * shade[:, None]
    return colours


def paint_labels(labels: Array, count: int) -> Array:
    """Turn a label map ``(H, W)`` into colours ``(H, W, 3)``; labels outside the classes are white."""
    colours = np.vstack([class_colours(count), np.ones((1, 3))])
    inside = (labels >= 0) & (labels < count)
    painted: Array = colours[np.where(inside, labels, count)]
    return painted


def show_picture(axis: Any, picture: Array) -> None:
    """Draw a grey ``(H, W)`` or colour ``(H, W, 3)`` picture without axes.

    Grey pictures are stretched between their 0.5 and 99.5 percentiles; colour must be in [0, 1] or uint8.
    """
    if picture.ndim == 2:
        low, high = np.percentile(picture, (0.5, 99.5))
        axis.imshow(picture, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
    else:
        axis.imshow(picture)
    hide_axes(axis)


def hide_axes(axis: Any) -> None:
    """Remove ticks, grid and frame but keep room for a label and a title."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def bytes_text(count: float) -> str:
    """Write a number of bytes for people: ``bytes_text(3 << 20)`` is ``"3.0 MiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def time_text(milliseconds: float) -> str:
    """Write a time for people: microseconds, milliseconds or seconds."""
    if milliseconds < 1:
        return f"{milliseconds * 1000:.0f} us"
    if milliseconds < 1000:
        return f"{milliseconds:.1f} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms"
    return f"{milliseconds / 1000:.2f} s"
