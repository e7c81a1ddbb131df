# SPDX-License-Identifier: MIT
"""The metrics that a run writes: JSON lines, CSV, TensorBoard."""

import csv
import json
import math
import sys
from pathlib import Path

import pytest

from ocnet.engine.records import RecordFiles, check_tensorboard

HISTORY = [{"step": 10, "loss": 2.0}]


def files(folder: Path, tensorboard: bool = False) -> RecordFiles:
    board = folder / "board" if tensorboard else None
    return RecordFiles(folder / "m.jsonl", folder / "m.csv", board, HISTORY)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "m.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_json_lines_go_on_from_a_history(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("left over\n")
    files(tmp_path).append({"step": 20, "loss": 1.5, "miou": math.nan})
    text = (tmp_path / "m.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == [
        {"step": 10, "loss": 2.0},
        {"step": 20, "loss": 1.5, "miou": None},
    ]
    assert "NaN" not in text


def test_the_table_has_a_column_for_each_number_that_ever_came(tmp_path: Path) -> None:
    metrics = files(tmp_path)
    assert rows(tmp_path) == [{"step": "10", "loss": "2.0"}]
    metrics.append({"step": 20, "loss": 1.5})
    metrics.append({"step": 30, "loss": 1.0, "miou": 0.25})
    metrics.append({"step": 40, "loss": 0.5})
    metrics.append({"step": 50, "loss": 0.25, "miou": math.nan})
    assert [(row["step"], row["loss"], row["miou"]) for row in rows(tmp_path)] == [
        ("10", "2.0", ""),
        ("20", "1.5", ""),
        ("30", "1.0", "0.25"),
        ("40", "0.5", ""),
        ("50", "0.25", ""),
    ]


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    metrics = files(tmp_path, tensorboard=True)
    metrics.append({"step": 20, "loss": 1.5, "miou": 0.125})
    metrics.close()
    (events,) = (tmp_path / "board").iterdir()
    assert _scalars(events) == {("loss", 20): 1.5, ("miou", 20): 0.125}


def _scalars(path: Path) -> dict[tuple[str, int], float]:
    """Read an event file: records are length, checksum, message, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, found = path.read_bytes(), {}
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
        data = data[16 + length :]
    return found


def test_without_its_package_tensorboard_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(
        RuntimeError, match=r"^train: train\.tensorboard needs tensorboardX.*\[log\]"
    ):
        check_tensorboard()
