# SPDX-License-Identifier: MIT
"""The arguments that name a trained network, which several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ocnet.engine.run import Run


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to a parser.

    Args:
        parser: of the command; its own arguments must not begin like those of configs.
    """
    parser.add_argument("--run", type=Path, help="folder that ocnet train wrote")
    parser.add_argument(
        "--config",
        type=Path,
        help="instead of --run: YAML file of the network and its data set ...",
    )
    parser.add_argument(
        "--weights", type=Path, help="... and its weights, in any layout that load_checkpoint reads"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number>")
    parser.epilog = (
        "Keys of the config can be overridden: --<section>.<key>=<value>, such as "
        "--eval.scales=[0.75,1,1.25] --eval.flip=true --data.root=elsewhere"
    )


def parse_network_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """Parse a command line.

    Args:
        parser: with :func:`add_network_arguments`.
        argv: the command line.

    Returns:
        The arguments, and the overrides of the config as ``<section>.<key>=<value>``.

    Raises:
        ValueError: neither a run nor a config with weights is named, or both are.
    """
    args, rest = parser.parse_known_args(argv)
    for word in rest:
        if not (word.startswith("--") and "." in word.partition("=")[0] and "=" in word):
            parser.error(f"unrecognized arguments: {word}")
    given = [name for name in ("run", "config", "weights") if getattr(args, name) is not None]
    if given not in (["run"], ["config", "weights"]):
        raise ValueError(
            f"{parser.prog.removeprefix('ocnet ')}: a network must be named by --run, or by --config and "
            f"--weights, got {' and '.join(f'--{name}' for name in given) or 'neither'}"
        )
    return args, [word.removeprefix("--") for word in rest]


def open_network(args: argparse.Namespace, overrides: Sequence[str]) -> Run:
    """Read the network that the arguments name.

    Args:
        args: what :func:`parse_network_arguments` returned.
        overrides: the same.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a key of the config or the weights do not fit, or the device is not there.
    """
    # After parsing, so that --help and wrong options do not wait for torch.
    from ocnet.engine.run import load_run, load_weights

    if args.run is not None:
        return load_run(args.run, args.device, overrides)
    return load_weights(args.config, args.weights, args.device, overrides)
