# SPDX-License-Identifier: MIT
"""``ocnet bench``: what attention costs on this device, as a table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ocnet.engine.measure import Measurement


def main(argv: Sequence[str]) -> int:
    """Measure and print.

    Args:
        argv: Options, see ``ocnet bench --help``.

    Returns:
        Exit status 0, or 1 if a form failed for another reason than memory.

    Raises:
        ValueError: A size, a dtype or the device is not one.
    """
    args = _parser().parse_args(argv)
    # After parsing, so that --help does not wait for torch.
    from ocnet.engine.measure import FAILED, Job, run_jobs
    from ocnet.engine.meters import device_name
    from ocnet.engine.run import pick_device
    from ocnet.engine.workload import FORMS, Workload

    device = pick_device(args.device)
    dtype = args.dtype
    if dtype is None:
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    jobs = []
    for form in args.forms:
        if form not in FORMS:
            raise ValueError(f"bench: --forms must be of {', '.join(FORMS)}, got {form}")
        for height, width in (_size(text) for text in args.sizes):
            keys = (height, width) if args.separate else (0, 0)
            workload = Workload(
                args.batch,
                height,
                width,
                E=args.channels,
                Ev=args.channels if args.value_channels is None else args.value_channels,
                Hk=keys[0],
                Wk=keys[1],
                dtype=dtype,
                device=device.type,
                layout=args.layout,
                shared=not args.separate,
            )
            jobs.append(Job(FORMS[form], workload, args.phase, budget_s=args.seconds))
    print(f"{device_name(device)}, {dtype}, batch {args.batch}, {args.phase}")
    measured = list(run_jobs(jobs))
    Console().print(_table(measured))
    if args.json is not None:
        lines = [json.dumps(m.to_record()) + "\n" for m in measured]
        args.json.write_text("".join(lines), encoding="utf-8")
    return 1 if any(m.status == FAILED for m in measured) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ocnet bench",
        description="Measure attention on this device: the fused op, the plain formula (naive) and "
        "torch's scaled_dot_product_attention (sdpa). 'Kept' is held for the backward pass; "
        "peaks are counted beyond the inputs.",
    )
    add = parser.add_argument
    add("--sizes", nargs="+", default=["24", "48", "97"], help="rows x columns: 97 or 128x256")
    add("--forms", nargs="+", default=["fused", "naive", "sdpa"], help="which of them")
    add("--batch", type=int, default=1, help="pictures (%(default)s)")
    add("--channels", type=int, default=256, help="of query and key (%(default)s)")
    add("--value-channels", type=int, help="of values (those of query and key)")
    add("--separate", action="store_true", help="query and key are two tensors, not one")
    add("--dtype", help="float32 (the CPU's default), bfloat16 (the GPU's), float16, float64")
    add("--layout", choices=("nchw", "channels_last"), default="nchw", help="(%(default)s)")
    add("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    add("--phase", choices=("forward", "backward", "step"), default="step", help="(%(default)s)")
    add("--seconds", type=float, default=1.0, help="of repeats for each cell (%(default)s)")
    add("--json", type=Path, help="also write the measurements there, one JSON line each")
    return parser


def _size(text: str) -> tuple[int, int]:
    """Read ``"97"`` or ``"128x256"``."""
    height, _, width = text.partition("x")
    try:
        return int(height), int(width) if width else int(height)
    except ValueError:
        raise ValueError(f"bench: --sizes must be like 97 or 128x256, got {text}") from None


def _table(measured: Sequence[Measurement]) -> Table:
    from ocnet.report.style import bytes_text, time_text

    table = Table("form", "tokens")
    for heading in ("median", "p20", "p80", "kept", "peak"):
        table.add_column(heading, justify="right")
    for m in measured:
        tokens = f"{m.workload.H} x {m.workload.W}"
        if m.time is None:
            table.add_row(m.form, tokens, m.status, "", "", "", m.reason)
            continue
        times = (time_text(t) for t in (m.time.p50, m.time.p20, m.time.p80))
        memory = ("-" if b is None else bytes_text(b) for b in (m.saved_bytes, m.peak_bytes))
        table.add_row(m.form, tokens, *times, *memory)
    return table
