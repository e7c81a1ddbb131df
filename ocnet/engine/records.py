# SPDX-License-Identifier: MIT
"""The numbers of a run on disk: JSON lines and CSV always, TensorBoard where asked for."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, float]
"""One line of the metrics: ``step``, ``loss``, ``lr``, ``images_per_s`` and, at evaluations, scores."""


class RecordFiles:
    """The records of a run, each on disk as soon as it exists.

    Args:
        json_lines: file to write; what it held before is replaced.
        table: the same as CSV, one column for each number that any record has.
        tensorboard: folder of TensorBoard's files, or ``None`` for none.
        history: records of the steps before this process.

    Raises:
        RuntimeError: TensorBoard is asked for, and the package that writes its files is missing.
    """

    def __init__(
        self,
        json_lines: Path,
        table: Path,
        tensorboard: Path | None = None,
        history: Sequence[Mapping[str, float]] = (),
    ) -> None:
        self._json_lines = json_lines
        self._table = table
        self._history = list(history)
        self._writer: Any = None
        if tensorboard is not None:
            self._writer = _tensorboard(tensorboard)
        json_lines.write_text("".join(_json_line(record) for record in history), encoding="utf-8")
        self._write_table()

    def append(self, record: Mapping[str, float]) -> None:
        """Add a record.

        Args:
            record: numbers by name; NaN is written as ``null``, which JSON has, and as an empty cell.
        """
        with self._json_lines.open("a", encoding="utf-8") as file:
            file.write(_json_line(record))
        self._history.append(record)
        if set(record) <= set(self._columns):
            with self._table.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(_cells(record))
        else:
            self._write_table()
        if self._writer is not None:
            for name, value in record.items():
                if name != "step":
                    self._writer.add_scalar(name, value, int(record["step"]))
            self._writer.flush()

    def close(self) -> None:
        """End the files."""
        if self._writer is not None:
            self._writer.close()

    def _write_table(self) -> None:
        """Write all rows anew: a record may bring a column that those before did not have."""
        names = {name: None for record in self._history for name in record}
        self._columns = list(names)
        with self._table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(_cells(record) for record in self._history)


def check_tensorboard() -> None:
    """Check that TensorBoard's files can be written.

    Raises:
        RuntimeError: the package for it is missing.
    """
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise RuntimeError(
            "train: train.tensorboard needs tensorboardX, which is missing; install it with: "
            'pip install "ocnet[log]"'
        ) from error


def _tensorboard(folder: Path) -> Any:
    check_tensorboard()
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder))


def _cells(record: Mapping[str, float]) -> dict[str, float | str]:
    return {key: "" if math.isnan(value) else value for key, value in record.items()}


def _json_line(record: Mapping[str, float]) -> str:
    legal = {key: None if math.isnan(value) else value for key, value in record.items()}
    return json.dumps(legal, allow_nan=False) + "\n"
