# SPDX-License-Identifier: MIT
"""Training on two processes: what one process would do, written once."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from ocnet.engine import trainer
from ocnet.engine.config_files import load_config, parse_config, save_config
from ocnet.engine.run import build_model
from ocnet.engine.trainer import train
from tests.engine import smooth
from tests.processes import run_together

PROGRAM = Path(__file__).with_name("parallel_training_program.py")


def write_config(folder: Path, *more: str) -> None:
    folder.mkdir()
    words = [
        "--data.name=mosaics",
        "--data.mosaics.size=32",
        "--data.mosaics.train_length=10",
        "--data.mosaics.val_length=3",
        "--model.name=tiny_base_oc",
        "--model.norm=inplace_abn_sync",
        # Dropout differs between processes, as it should.
        "--model.options.dropout=0",
        "--model.options.backend=reference",
        "--optim.name=sgd",
        "--optim.lr=0.02",
        "--optim.schedule=poly",
        "--train.batch_size=4",
        "--train.steps=6",
        "--train.eval_every=2",
        "--train.log_every=1",
        "--train.device=cpu",
        f"--train.run_dir={folder / 'run'}",
        *more,
    ]
    save_config(parse_config(words), folder / "config.yaml")


def run(folder: Path, *, said: str = "trained", more: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    run_together(PROGRAM, 2, (port, str(folder), "2", *more), said)
    if said != "trained":
        return []
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("two") / "job"
    write_config(folder)
    return folder, run(folder)


def test_two_processes_do_what_one_does(
    two: tuple[Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (first, second) = two
    assert first["weights"].keys() == second["weights"].keys()
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
    assert torch.equal(first["counts"], second["counts"])
    assert int(first["counts"].sum()) == 3 * 32 * 32
    write_config(tmp_path / "one")
    config = load_config(tmp_path / "one" / "config.yaml")
    monkeypatch.setattr(trainer, "build_model", smooth.build_model)
    alone = train(config)
    # Sums are in another order, each off by a rounding of 6e-8, in one step and then in six.
    losses = [record["loss"] for record in alone.history]
    assert first["losses"][0] == pytest.approx(losses[0], rel=1e-6)
    assert first["losses"] == pytest.approx(losses, rel=1e-5)
    # A thousand roundings; a process left out, or a sum for a mean, is most of how far training went.
    torch.manual_seed(config.train.seed)
    start = build_model(config.model, alone.info)[0].state_dict()
    for name, value in alone.model.state_dict().items():
        if value.is_floating_point() and value.dim() == 4:
            went = (value - start[name]).norm()
            assert went > 0
            assert (value - first["weights"][name]).norm() < 1e-4 * went, name


def test_only_the_first_process_writes(two: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, _ = two
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6
    assert "torchrun --nproc-per-node 2 train.py" in (folder / "run" / "run.json").read_text()


def test_a_stopped_run_of_two_goes_on_to_the_same_bits(
    two: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    write_config(tmp_path / "again")
    run(tmp_path / "again", said="stopped", more=("stop",))
    first, _ = run(tmp_path / "again")
    for name, value in two[1][0]["weights"].items():
        assert torch.equal(value, first["weights"][name]), name


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path / "odd", "--train.batch_size=3")
    with pytest.raises(AssertionError, match="multiple of the number of processes, 2, got 3"):
        run(tmp_path / "odd")
    assert not (tmp_path / "odd" / "run").exists()
