# SPDX-License-Identifier: MIT
"""Dispatch, exit status and one-line errors."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ocnet import __version__
from ocnet.cli import main as module
from ocnet.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a function in the place of ``ocnet train``."""

    def install(function: Any) -> None:
        command = ModuleType("ocnet.cli.fake")
        command.main = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "ocnet.cli.fake", command)
        monkeypatch.setitem(module._COMMANDS, "train", ("ocnet.cli.fake", ""))

    return install


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", ["train", "eval", "predict"])
def test_commands_have_help_without_torch(command: str) -> None:
    code = (
        "import sys\nfrom ocnet.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as done:\n"
        "    print(done.code, 'torch' in sys.modules)"
    )
    done = run("-c", code, command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0 False"
    assert f"ocnet {command}" in done.stdout


def test_help_and_version_import_neither_torch_nor_a_command() -> None:
    code = (
        "import sys\nfrom ocnet.cli.main import main\n"
        "for word in ('--help', '--version'):\n"
        "    try:\n        main([word])\n    except SystemExit as done:\n        print(done.code)\n"
        "print([name for name in ('torch', 'numpy', 'rich') if name in sys.modules])"
    )
    lines = run("-c", code).stdout.splitlines()
    assert lines[-1] == "[]"
    assert lines.count("0") == 2
    assert f"ocnet {__version__}" in lines
    assert all(any(line.strip().startswith(name) for line in lines) for name in module._COMMANDS)


def test_arguments_and_status_are_passed_on(fake: Any) -> None:
    seen: list[Sequence[str]] = []

    def command(argv: Sequence[str]) -> int:
        seen.append(argv)
        return 3

    fake(command)
    assert main(["train", "--a", "b", "--help"]) == 3
    assert seen == [["--a", "b", "--help"]]


@pytest.mark.parametrize(
    "kind", [ValueError, TypeError, RuntimeError, NotImplementedError, FileNotFoundError]
)
def test_user_errors_are_one_line(
    fake: Any, capsys: pytest.CaptureFixture[str], kind: type[Exception]
) -> None:
    def command(argv: Sequence[str]) -> int:
        raise kind("create: name must\n  be known, got x")

    fake(command)
    assert main(["train"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "ocnet train: create: name must be known, got x\n"
    assert captured.out == ""
    for words in (["train", "--traceback"], ["--traceback", "train"]):
        with pytest.raises(kind):
            main(words)


def test_other_errors_are_not_hidden(fake: Any) -> None:
    def command(argv: Sequence[str]) -> int:
        raise KeyError("a bug")

    fake(command)
    with pytest.raises(KeyError):
        main(["train"])


def test_an_interrupt_is_told_apart(fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: Sequence[str]) -> int:
        raise KeyboardInterrupt

    fake(command)
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "ocnet train: interrupted\n"


def test_no_command_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["trian"], ["--config", "x", "train"]])
def test_unknown_commands_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "ocnet: error:" in capsys.readouterr().err


def test_train_py_is_ocnet_train() -> None:
    done = run("train.py", "--config", "none.yaml")
    assert done.returncode == 2
    assert done.stderr == "ocnet train: config: --config must name a file, got none.yaml\n"
