# SPDX-License-Identifier: MIT
"""``ocnet submit``: label a test split the way its server wants it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ocnet.cli.networks import add_network_arguments, open_network, parse_network_arguments


def main(argv: Sequence[str]) -> int:
    """Write the labels of a split in the values of its label files, and a zip of them.

    Args:
        argv: ``--run``, ``--out`` and options, see ``ocnet submit --help``.

    Returns:
        Exit status 0.
    """
    parser = argparse.ArgumentParser(
        prog="ocnet submit",
        description="Label a split: palette PNGs whose values are those of the data set's own label files "
        "(labelIds for Cityscapes), flat in a folder, and a zip of them to upload.",
    )
    add_network_arguments(parser)
    parser.add_argument(
        "--split",
        choices=("test", "val", "train"),
        default="test",
        help="pictures to label (%(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, help="folder to write into (<run>/submit_<split>); the zip is beside it"
    )
    args, overrides = parse_network_arguments(parser, argv)

    run = open_network(args, overrides)
    from ocnet.engine.logging import CountLog
    from ocnet.engine.scoring import submit

    folder = run.path if run.path.is_dir() else run.path.parent
    out = folder / f"submit_{args.split}" if args.out is None else args.out
    with CountLog(f"submit {args.split}") as log:
        count, archive = submit(run, args.split, out, on_progress=log.update)
    print(f"{count} pictures written to {out} and {archive}")
    return 0
