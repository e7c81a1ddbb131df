# SPDX-License-Identifier: MIT
"""``ocnet eval``: score a trained network on its data set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ocnet.cli.networks import add_network_arguments, open_network, parse_network_arguments
from ocnet.cli.tables import print_evaluation


def main(argv: Sequence[str]) -> int:
    """Score a trained network.

    Args:
        argv: ``--run`` and options, see ``ocnet eval --help``.

    Returns:
        Exit status 0.
    """
    parser = argparse.ArgumentParser(
        prog="ocnet eval", description="Score a trained network, class by class."
    )
    add_network_arguments(parser)
    parser.add_argument(
        "--split",
        choices=("val", "train", "test"),
        default="val",
        help="pictures to score on (%(default)s)",
    )
    parser.add_argument(
        "--csv", type=Path, help="file for the per-class table (<run>/eval_<split>.csv)"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the predictions of all pictures, as palette PNGs"
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=0,
        help="so many pictures, evenly spread, are drawn into --out (<run>/eval_<split>) with truth, "
        "prediction, errors and what the network looked at (%(default)s)",
    )
    args, overrides = parse_network_arguments(parser, argv)
    if args.pictures < 0:
        raise ValueError(f"eval: --pictures must be at least 0, got {args.pictures}")

    run = open_network(args, overrides)
    from ocnet.engine.logging import CountLog
    from ocnet.engine.scoring import Drawing, score
    from ocnet.evaluation import write_class_table

    folder = run.path if run.path.is_dir() else run.path.parent
    drawing = None
    if args.out is not None or args.pictures > 0:
        out = folder / f"eval_{args.split}" if args.out is None else args.out
        drawing = Drawing(out, predictions=args.out is not None, pictures=args.pictures)
    with CountLog(f"eval {args.split}") as log:
        evaluation = score(run, args.split, drawing=drawing, on_progress=log.update)
    print_evaluation(evaluation, run.info.class_names)
    path = folder / f"eval_{args.split}.csv" if args.csv is None else args.csv
    path.parent.mkdir(parents=True, exist_ok=True)
    write_class_table(path, evaluation.confusion.per_class_table(run.info.class_names))
    print(f"written to {path}" + ("" if drawing is None else f" and {drawing.folder}"))
    return 0
