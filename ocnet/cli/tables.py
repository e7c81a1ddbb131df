# SPDX-License-Identifier: MIT
"""Tables that commands print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ocnet.evaluation import Evaluation


def print_evaluation(
    evaluation: Evaluation, class_names: Sequence[str], console: Console | None = None
) -> None:
    """Print the per-class table and the scores under it.

    Args:
        evaluation: what was counted.
        class_names: one name per class.
        console: where to print; default: standard output.
    """
    out = Console() if console is None else console
    table = Table("class")
    for heading in ("IoU", "accuracy", "precision", "pixels"):
        table.add_column(heading, justify="right")
    for row in evaluation.confusion.per_class_table(class_names):
        scores = [_percent(score) for score in (row.iou, row.accuracy, row.precision)]
        if row.absent:
            scores = ["absent", "", ""]
        table.add_row(row.name, *scores, f"{row.pixels:,}")
    out.print(table)
    absent = len(evaluation.confusion.absent())
    out.print(
        f"mIoU {_percent(evaluation.mean_iou)}"
        + (f" (of {len(class_names) - absent} classes; {absent} absent)" if absent else "")
        + f"  pixel accuracy {_percent(evaluation.pixel_accuracy)}"
        + "".join(
            f"  {name} pixels right {_percent(group.accuracy)}"
            for name, group in evaluation.groups.items()
        ),
        soft_wrap=True,
        highlight=False,
    )


def _percent(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{100 * fraction:.2f} %"
