# SPDX-License-Identifier: MIT
"""``ocnet data check``: what is in a data set, and what is wrong with it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

if TYPE_CHECKING:
    from ocnet.data import SegmentationDataset
    from ocnet.data.check_report import CheckReport, Problem, Size
    from ocnet.engine.config import DataConfig

REPORT_FILE = "check.json"
LABELS_FILE = "labels.csv"
MAP_FILE = "label_map.yaml"
SHEET_FILE = "contact_sheet.png"

# What a config of a run must have and a check does not look at; a config with them wins.
_NOT_LOOKED_AT = ("--model.name=none", "--train.run_dir=none")
_SHOWN = 5  # sentences of one kind


def main(argv: Sequence[str]) -> int:
    """Check a data set.

    Args:
        argv: ``check``, options, ``--config file.yaml`` and ``--data.<key>=<value>``; see
            ``ocnet data check --help``.

    Returns:
        Exit status 0, or 1 if there are problems.
    """
    options, rest = _parser().parse_known_args(argv)
    from ocnet.engine.config_files import parse_config

    config = parse_config([*_NOT_LOOKED_AT, *rest], prog="ocnet data check").data
    # After parsing, so that --help and wrong keys do not wait for torch.
    from ocnet.data.checking import examine
    from ocnet.engine.datasets import build_split

    splits = {name: build_split(config, name) for name in dict.fromkeys(options.splits)}
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks = {name: progress.add_task(name, total=None) for name in splits}
        report = examine(
            splits,
            limit=options.limit,
            unlabelled=("test",),
            on_item=lambda name, done, total: progress.update(
                tasks[name], completed=done, total=total
            ),
        )
    _print(report, console)
    _write(report, splits, config, options.out, console)
    return 0 if report.ok else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ocnet data", description="Look at a data set.")
    check = parser.add_subparsers(required=True, metavar="check").add_parser(
        "check",
        allow_abbrev=False,
        help="count labels, and find what training would stumble over",
        description="Count labels, and find what training would stumble over. The data set is that of a "
        "config: --config file.yaml and --data.<key>=<value>, as of ocnet train; a config with nothing "
        "but the section data will do. Nothing is written but the folder of --out. "
        "The exit status is 1 if there are problems.",
    )
    add = check.add_argument
    add("--splits", nargs="+", choices=("train", "val", "test"), default=["train", "val"])
    add("--limit", type=int, help="look at so many pictures of each split (all)")
    add("--out", type=Path, help="folder for the report (runs/data_check/<data.name>)")
    return parser


def _print(report: CheckReport, console: Console) -> None:
    for name, split in report.splits.items():
        sizes = (
            f"{_text(split.smallest)} to {_text(split.largest)}, mostly {_text(split.most_common)}"
        )
        _line(
            console,
            f"{name}: {split.looked_at:,} of {split.pictures:,} pictures, {split.labelled:,} labels, {sizes}, "
            f"{split.ignored_share:.1%} of the pixels ignored",
        )
    console.print(_table(report))
    for heading, found in (("problem", report.problems), ("warning", report.warnings)):
        for sentence in _sentences(found):
            _line(console, f"{heading}: {sentence}")
    if report.suggestion is not None:
        _line(console, f"suggestion: {report.suggestion.sentence}")
    _line(console, f"{len(report.problems):,} problems, {len(report.warnings):,} warnings")


def _table(report: CheckReport) -> Table:
    table = Table("class")
    for name in report.splits:
        table.add_column(f"{name} pixels", justify="right")
        table.add_column("pictures", justify="right")
    for rows in zip(*(split.classes for split in report.splits.values()), strict=True):
        cells = [cell for row in rows for cell in (f"{row.share:.2%}", f"{row.pictures:,}")]
        table.add_row(rows[0].name, *cells)
    return table


def _sentences(found: Sequence[Problem]) -> list[str]:
    """Return the first sentences of each kind, and how many more there are."""
    kinds: dict[str, list[str]] = {}
    for each in found:
        kinds.setdefault(each.kind, []).append(each.sentence)
    lines = []
    for kind, sentences in kinds.items():
        lines += sentences[:_SHOWN]
        if len(sentences) > _SHOWN:
            more = len(sentences) - _SHOWN
            lines.append(f"{kind}: {more:,} more, all of them in {REPORT_FILE}")
    return lines


def _write(
    report: CheckReport,
    splits: Mapping[str, SegmentationDataset],
    config: DataConfig,
    out: Path | None,
    console: Console,
) -> None:
    folder = Path("runs", "data_check", config.name) if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    report.write(folder / REPORT_FILE)
    report.write_labels(folder / LABELS_FILE)
    written = [REPORT_FILE, LABELS_FILE]
    # Of an earlier check, and perhaps not true any more.
    for name in (MAP_FILE, SHEET_FILE):
        (folder / name).unlink(missing_ok=True)
    if report.suggestion is not None and report.suggestion.label_map is not None:
        (folder / MAP_FILE).write_text(report.suggestion.yaml(), encoding="utf-8")
        written.append(MAP_FILE)
    trouble = _draw(folder / SHEET_FILE, splits, config.name)
    if trouble:
        _line(console, f"no contact sheet: {trouble}")
    else:
        written.append(SHEET_FILE)
    _line(console, f"written to {folder}: {', '.join(written)}")


def _draw(path: Path, splits: Mapping[str, SegmentationDataset], title: str) -> str:
    """Draw the contact sheet; return a sentence if that cannot be."""
    from ocnet.data.checking import rows_to_show
    from ocnet.report import contact_sheet

    rows = rows_to_show(splits)
    if not rows:
        return "there is no picture with a label that can be read"
    info = next(iter(splits.values())).info
    try:
        contact_sheet(path, rows, info.class_names, info.palette, title=title)
    except RuntimeError as error:
        # matplotlib is an extra; the check is worth something without it.
        return str(error)
    return ""


def _text(size: Size | None) -> str:
    return "-" if size is None else f"{size[0]} x {size[1]}"


def _line(console: Console, text: str) -> None:
    """Print a line as it is: paths may have brackets, and are for copying."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
