# SPDX-License-Identifier: MIT
"""``ocnet eval``: score a trained network on its data set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

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
    parser.add_argument("--run", type=Path, required=True, help="folder that ocnet train wrote")
    parser.add_argument(
        "--split",
        choices=("val", "train"),
        default="val",
        help="pictures to score on (%(default)s)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number>")
    parser.add_argument(
        "--csv", type=Path, help="file for the per-class table (<run>/eval_<split>.csv)"
    )
    args = parser.parse_args(argv)

    # After parsing, so that --help and wrong options do not wait for torch.
    from ocnet.engine.run import build_datasets, load_run
    from ocnet.evaluation import evaluate, write_class_table

    run = load_run(args.run, args.device)
    train_set, val_set = build_datasets(run.config.data)
    evaluation = evaluate(
        run.model,
        val_set if args.split == "val" else train_set,
        batch_size=run.config.data.eval_batch_size,
        device=run.device,
    )
    print_evaluation(evaluation, run.info.class_names)
    path = args.run / f"eval_{args.split}.csv" if args.csv is None else args.csv
    write_class_table(path, evaluation.confusion.per_class_table(run.info.class_names))
    print(f"written to {path}")
    return 0
