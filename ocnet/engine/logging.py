# SPDX-License-Identifier: MIT
"""What a run says while it goes: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from typing_extensions import Self


class _WithBar:
    """A context in which a bar, if there is one, moves."""

    _bar: Progress | None = None

    def __enter__(self) -> Self:
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


class ProgressLog(_WithBar):
    """Shows how far a training run is.

    On a terminal: one bar with loss, learning rate, images per second and time left, and a line for
    each evaluation. Elsewhere: a line for each record. Use it as a context manager.

    Args:
        title: name of the run.
        steps: steps of the whole run.
        first: steps done before this process, by a run that is continued.
        console: where to print; default: standard output.
        quiet: say nothing, as all processes of a run but one.
    """

    def __init__(
        self,
        title: str,
        steps: int,
        first: int = 0,
        console: Console | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        self._title = title
        self._steps = steps
        self._first = first
        self._console = Console(quiet=quiet) if console is None else console
        self._start = time.monotonic()
        if self._console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(title, total=steps, completed=first, facts="")

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


class CountLog(_WithBar):
    """Shows how many pictures are done: a bar on a terminal, a line for each tenth elsewhere.

    Use it as a context manager.

    Args:
        title: what is done.
        console: where to print; default: standard output.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        self._title = title
        self._console = Console() if console is None else console
        self._tenth = 0
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(title, total=None)

    def update(self, done: int, total: int) -> None:
        """Say how many are done.

        Args:
            done: so many, of ...
            total: ... all.
        """
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif 10 * done // total > self._tenth:
            self._tenth = 10 * done // total
            self._console.print(f"{self._title}  {done}/{total}", highlight=False, markup=False)
