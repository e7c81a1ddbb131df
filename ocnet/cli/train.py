# SPDX-License-Identifier: MIT
"""``ocnet train``: a config file and dotted overrides in, a run folder out."""

from __future__ import annotations

from collections.abc import Sequence

from ocnet.cli.tables import print_evaluation
from ocnet.engine.config_files import parse_config


def main(argv: Sequence[str]) -> int:
    """Train a network.

    Args:
        argv: ``--config file.yaml`` and ``--<section>.<key>=<value>``.

    Returns:
        Exit status 0.
    """
    config = parse_config(argv, prog="ocnet train")
    # After parsing, so that --help and wrong keys do not wait for torch.
    from ocnet.engine.trainer import train

    result = train(config)
    print_evaluation(result.evaluation, result.info.class_names)
    print(f"written to {result.run_dir}")
    return 0
