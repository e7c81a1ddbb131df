# SPDX-License-Identifier: MIT
"""Checkpoints: whole or not there, and never code."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from ocnet.engine.checkpoint import (
    load_training_state,
    random_state,
    save_training_state,
    set_random_state,
)


class Bomb:
    def __reduce__(self) -> Any:
        return (print, ("boom",))


def test_states_come_back(tmp_path: Path) -> None:
    state = {"step": 3, "weights": torch.randn(3), "history": [{"loss": 0.5}], "name": "x"}
    save_training_state(tmp_path / "last.pt", state)
    loaded = load_training_state(tmp_path / "last.pt")
    assert torch.equal(loaded.pop("weights"), state.pop("weights"))
    assert loaded == state
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_training_state(path, {"step": 1})

    def full_disk(state: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_training_state(path, {"step": 2})
    assert load_training_state(path) == {"step": 1}


def test_files_that_are_no_checkpoint_are_named(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(FileNotFoundError, match=r"must name a file, got .*last\.pt"):
        load_training_state(path)
    path.write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"got .*last\.pt, which is damaged or something else"):
        load_training_state(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="which holds list"):
        load_training_state(path)


def test_cut_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_training_state(path, {"weights": torch.randn(1000)})
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="damaged"):
        load_training_state(path)


def test_code_in_a_file_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "last.pt"
    torch.save({"x": Bomb()}, path)
    with pytest.raises(ValueError, match="damaged or something else"):
        load_training_state(path)
    with path.open("wb") as file:
        pickle.dump(Bomb(), file)
    with pytest.raises(ValueError, match="damaged or something else"):
        load_training_state(path)
    assert "boom" not in capsys.readouterr().out


def test_random_state_comes_back() -> None:
    device = torch.device("cpu")
    state = random_state(device)
    numbers = torch.rand(5)
    torch.rand(3)
    set_random_state(state, device)
    assert torch.equal(torch.rand(5), numbers)
