# SPDX-License-Identifier: MIT
"""``ocnet demo``: train object context and its local control, measure attention, show both."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Run the job.

    Args:
        argv: Options, see ``ocnet demo --help``.

    Returns:
        Exit status 0, or 1 if object context did not clearly beat the local control.
    """
    parser = argparse.ArgumentParser(
        prog="ocnet demo",
        description="Train a network with object context and its local control on mosaics of real "
        "photographs, measure what attention costs on this device, and write pictures and a page.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder to write into (%(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, default=500, help="training steps of each network (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and mosaics (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    parser.add_argument(
        "--fast", action="store_true", help="tiny sizes: shows that all runs, its result is nothing"
    )
    args = parser.parse_args(argv)
    # After parsing, so that --help does not wait for torch.
    from ocnet.engine.demo import DemoOptions, run_demo

    options = DemoOptions(args.out, args.steps, args.seed, args.fast, args.device)
    findings = run_demo(options)
    return 0 if findings.context_wins else 1
