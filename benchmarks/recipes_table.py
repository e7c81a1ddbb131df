# SPDX-License-Identifier: MIT
"""Turn the results of the recipes into a markdown table.

python -m benchmarks.recipes_table                                        # printed
python -m benchmarks.recipes_table --into README.md docs/recipes.md       # in its place
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import insert, line

RESULTS = Path(__file__).resolve().parent.parent / "configs" / "results.yaml"
_HEADER = ("config", "scored on", "published mIoU", "source", "ours")
_NOT_RUN = "not run: no data here"
BEGIN = "<!-- recipes: made by benchmarks.recipes_table -->"
END = "<!-- end of recipes -->"
_REQUIRED = {"split", "how", "published", "source"}
_OPTIONAL = {"with", "ours", "run"}

Row = Mapping[str, Any]


def read_results(path: Path = RESULTS) -> dict[str, list[Row]]:
    """Return the rows of each config, ``<data set>/<experiment>``, in the order of the file.

    Raises:
        ValueError: A row lacks a key or has an unknown one, or a figure of ours without its run.
    """
    results: dict[str, list[Row]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for config, rows in results.items():
        for row in rows:
            _check(config, row)
    return results


def _check(config: str, row: Row) -> None:
    wrong = sorted(_REQUIRED - row.keys()) + sorted(row.keys() - _REQUIRED - _OPTIONAL)
    if wrong:
        raise ValueError(
            f"results: a row must have {', '.join(sorted(_REQUIRED))} and may have "
            f"{', '.join(sorted(_OPTIONAL))}, got another set for {config}: {', '.join(wrong)}"
        )
    if ("ours" in row) != ("run" in row):
        raise ValueError(
            f"results: ours and run must be given together, got one of them for {config}"
        )


def markdown(results: Mapping[str, Sequence[Row]]) -> str:
    """Return the table, a line for each figure."""
    lines = [line(_HEADER), line(["---"] * len(_HEADER))]
    for config, rows in results.items():
        for row in rows:
            published = row["published"] or "none"
            ours = f"{row['ours']} ({row['run']})" if "ours" in row else _NOT_RUN
            scored = f"{row['split']}, {row['how']}"
            lines.append(line([f"`{config}`", scored, published, row["source"], ours]))
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Print the table, or put it into documents."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--into", type=Path, nargs="+", help="documents to put the table into")
    options = parser.parse_args(argv)
    table = markdown(read_results())
    if options.into is None:
        print(table)
        return 0
    for path in options.into:
        path.write_text(
            insert(path.read_text(encoding="utf-8"), table, BEGIN, END), encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
