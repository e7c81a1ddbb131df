# SPDX-License-Identifier: MIT
"""What a run says while it goes: a progress bar on a terminal, plain lines elsewhere, and JSON lines."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

Record = dict[str, float]
"""One line of the metrics: ``step``, ``loss``, ``lr``, ``images_per_s`` and, at evaluations, scores."""


class ProgressLog:
    """Shows how far a training run is.

    On a terminal: one bar with loss, learning rate, images per second and time left, and a line for
    each evaluation. Elsewhere: a line for each record. Use it as a context manager.

    Args:
        title: name of the run.
        steps: steps of the whole run.
        first: steps done before this process, by a run that is continued.
        console: where to print; default: standard output.
    """

    def __init__(
        self, title: str, steps: int, first: int = 0, console: Console | None = None
    ) -> None:
        self._title = title
        self._steps = steps
        self._first = first
        self._console = Console() if console is None else console
        self._start = time.monotonic()
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(title, total=steps, completed=first, facts="")

    def __enter__(self) -> ProgressLog:
        """Start the bar."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the bar and leave it on the screen."""
        if self._bar is not None:
            self._bar.stop()

    def line(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def step(self, step: int) -> None:
        """Move the bar.

        Args:
            step: steps done.
        """
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def record(self, record: Mapping[str, float]) -> None:
        """Show a record.

        Args:
            record: ``step``, ``loss``, ``lr`` and ``images_per_s``; also ``miou`` and other scores
                if the network was evaluated.
        """
        step = int(record["step"])
        facts = (
            f"loss {record['loss']:.4f}  lr {record['lr']:.2e}  {record['images_per_s']:.1f} img/s"
        )
        scores = "".join(
            f"  {_SCORE_NAMES.get(name, name)} {value:.4f}"
            for name, value in record.items()
            if name not in ("step", "loss", "lr", "images_per_s")
        )
        counted = f"{self._title}  step {step:>{len(str(self._steps))}}/{self._steps}"
        if self._bar is None:
            self.line(f"{counted}  {facts}  ETA {self._time_left(step)}{scores}")
            return
        self._bar.update(self._task, completed=step, facts=facts)
        if scores:
            self.line(f"{counted}{scores}")

    def _time_left(self, step: int) -> str:
        done = step - self._first
        if done <= 0:
            return "?"
        seconds = (time.monotonic() - self._start) / done * (self._steps - step)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


_SCORE_NAMES = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy"}


class MetricsFile:
    """The records of a run as JSON lines, each on disk as soon as it exists.

    Args:
        path: file to write; what it held before is replaced.
        history: records of the steps before this process.
    """

    def __init__(self, path: Path, history: Sequence[Mapping[str, float]] = ()) -> None:
        self._path = path
        path.write_text("".join(_json_line(record) for record in history), encoding="utf-8")

    def append(self, record: Mapping[str, float]) -> None:
        """Add a record.

        Args:
            record: numbers by name; NaN is written as ``null``, which JSON has.
        """
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_json_line(record))


def _json_line(record: Mapping[str, float]) -> str:
    legal = {key: None if math.isnan(value) else value for key, value in record.items()}
    return json.dumps(legal, allow_nan=False) + "\n"
