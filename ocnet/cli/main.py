# SPDX-License-Identifier: MIT
"""``ocnet <command>``: finds the command, runs it, and turns errors into one line."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from ocnet import __version__

# Command -> module with ``main(argv) -> exit status``, and what it does. Modules are imported when
# their command runs: help must not wait for torch.
_COMMANDS = {
    "train": ("ocnet.cli.train", "train a network from a YAML config"),
    "eval": ("ocnet.cli.evaluate", "score a trained network, class by class"),
    "submit": ("ocnet.cli.submit", "label a test split as its server wants it"),
    "predict": ("ocnet.cli.predict", "label every pixel of a picture"),
    "data": ("ocnet.cli.data", "check pictures and labels before training"),
    "demo": ("ocnet.cli.demo", "train object context and its local control, and show both"),
    "doctor": ("ocnet.cli.doctor", "print versions, devices and back ends, with reasons"),
    "bench": ("ocnet.cli.bench", "measure the fused ops against plain torch"),
}

# What checks of this package raise for something that the user can put right.
_USER_ERRORS = (ValueError, TypeError, RuntimeError, NotImplementedError, FileNotFoundError)
_USER_ERROR_STATUS = 2
_INTERRUPTED_STATUS = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; default: those of the process.

    Returns:
        Exit status: 0, that of the command, 2 for wrong input, 130 if interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    show_traceback = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    if not words or words[0] not in _COMMANDS:
        return _top_level(words)
    command, rest = words[0], words[1:]
    try:
        status: int = importlib.import_module(_COMMANDS[command][0]).main(rest)
    except KeyboardInterrupt:
        print(f"ocnet {command}: interrupted", file=sys.stderr)
        return _INTERRUPTED_STATUS
    except _USER_ERRORS as error:
        if show_traceback:
            raise
        print(f"ocnet {command}: {' '.join(str(error).split())}", file=sys.stderr)
        return _USER_ERROR_STATUS
    return status


def _top_level(words: Sequence[str]) -> int:
    """Answer a call that names no command; argparse exits itself for help and for errors."""
    width = max(len(name) for name in _COMMANDS)
    parser = argparse.ArgumentParser(
        prog="ocnet",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Scene parsing with attention over pixels.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<{width}}  {summary}" for name, (_, summary) in _COMMANDS.items())
        + "\n\n'ocnet <command> --help' shows the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"ocnet {__version__}")
    parser.add_argument(
        "--traceback",
        action="store_true",
        help="show where an error comes from, not only what it is",
    )
    parser.add_argument("command", choices=tuple(_COMMANDS), metavar="command", help="see below")
    if not words:
        parser.print_help()
        return _USER_ERROR_STATUS
    parser.parse_args(words)
    # Only reached by options before the command, which are not understood there.
    parser.error("the command must come first")


if __name__ == "__main__":
    raise SystemExit(main())
