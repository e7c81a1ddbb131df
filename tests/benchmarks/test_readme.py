# SPDX-License-Identifier: MIT
"""The tables of the documents are those that the committed rows make."""

from pathlib import Path

import pytest

from benchmarks.report import confirmed_table, insert, read_rows, summary

ROOT = Path(__file__).resolve().parent.parent.parent


def test_readme_shows_the_committed_rows() -> None:
    rows = read_rows(sorted((ROOT / "benchmarks" / "results").glob("*.jsonl")))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert insert(text, summary(rows)) == text


def test_the_page_of_the_emulator_shows_what_gpus_have_confirmed() -> None:
    rows = read_rows(sorted((ROOT / "benchmarks" / "results" / "primitives").glob("*.jsonl")))
    text = (ROOT / "docs" / "emulator.md").read_text(encoding="utf-8")
    assert insert(text, confirmed_table(rows)) == text


def test_a_document_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="report: --into must name a file with"):
        insert("nothing here", "a table")


def test_the_table_replaces_what_stood_between_the_marks() -> None:
    marks = "<!-- rows: made by benchmarks.report -->", "<!-- end of rows -->"
    once = insert(f"head\n{marks[0]}\nold\n{marks[1]}\ntail", "new")
    assert once == f"head\n{marks[0]}\nnew\n{marks[1]}\ntail"
    assert insert(once, "new") == once
