# SPDX-License-Identifier: MIT
"""The table of recipes: every experiment is in it, and the documents show it."""

from pathlib import Path

import pytest
import yaml

from benchmarks.recipes_table import BEGIN, END, markdown, read_results
from benchmarks.report import insert
from ocnet.engine.config import EvalConfig
from ocnet.engine.config_files import load_config

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIGS = ROOT / "configs"


@pytest.mark.parametrize("document", ["README.md", "docs/recipes.md"])
def test_documents_show_the_committed_results(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert insert(text, markdown(read_results()), BEGIN, END) == text


def test_every_experiment_has_rows_and_every_row_an_experiment() -> None:
    # ResNet-18 on the mosaics takes minutes; its config says what was seen once.
    experiments = {
        f"{path.parent.name}/{path.stem}"
        for path in CONFIGS.glob("*/*.yaml")
        if path.parent.name != "bases" and not path.stem.startswith("resnet18")
    }
    results = read_results()
    assert results.keys() == experiments
    assert all(results.values())


def test_the_overrides_of_a_row_are_what_its_words_say() -> None:
    for config, rows in read_results().items():
        for row in rows:
            path = CONFIGS / f"{config}.yaml"
            # Parsing takes a while, and most rows override nothing.
            options = load_config(path, row["with"]).eval if "with" in row else evaluation_of(path)
            assert row["how"] in (scored(options), "several scales")


def evaluation_of(path: Path) -> EvalConfig:
    content = yaml.safe_load(path.read_text())
    base = {}
    if "base" in content:
        base = yaml.safe_load((path.parent / content["base"]).read_text())
    return EvalConfig(**{**base.get("eval", {}), **content.get("eval", {})})


def scored(options: EvalConfig) -> str:
    if len(options.scales) > 1:
        return f"{len(options.scales)} scales" + (", flip" if options.flip else "")
    return "flip" if options.flip else "single scale"


def test_figures_are_never_those_that_nobody_could_verify() -> None:
    # Recollections of the papers of OCR and ISA: on Cityscapes, LIP, ADE20K, COCO-Stuff.
    unseen = {"82.4", "83.0", "83.7", "55.60", "56.65", "39.5", "40.5", "82.0", "45.04", "55.15", "54.1", "38.3"}  # fmt: skip
    rows = [row for rows in read_results().values() for row in rows]
    published = {str(row["published"]).removeprefix("about ") for row in rows}
    assert not published & unseen


def test_a_line_for_each_figure() -> None:
    row = {"split": "val", "how": "flip", "published": "about 50.5", "source": "a|b"}
    own = {**row, "published": None, "ours": "49.1", "run": "1234567, a machine, 2030-01-01"}
    lines = markdown({"x/y": [row, own]}).splitlines()
    assert lines == [
        "| config | scored on | published mIoU | source | ours |",
        "| --- | --- | --- | --- | --- |",
        r"| `x/y` | val, flip | about 50.5 | a\|b | not run: no data here |",
        r"| `x/y` | val, flip | none | a\|b | 49.1 (1234567, a machine, 2030-01-01) |",
    ]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"source": ...}, "got another set for x/y: source"),
        ({"note": "x"}, "got another set for x/y: note"),
        ({"ours": "49.1"}, "ours and run must be given together, got one of them for x/y"),
        ({"run": "today"}, "ours and run must be given together"),
    ],
)
def test_wrong_rows_are_refused(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    row = {"split": "val", "how": "flip", "published": None, "source": "x", **change}
    rows = [{key: value for key, value in row.items() if value is not ...}]
    (tmp_path / "results.yaml").write_text(yaml.safe_dump({"x/y": rows}))
    with pytest.raises(ValueError, match=rf"^results: .*{complaint}"):
        read_results(tmp_path / "results.yaml")


def test_the_table_replaces_what_stood_between_the_marks() -> None:
    once = insert(f"head\n{BEGIN}\nold\n{END}\ntail", "new", BEGIN, END)
    assert once == f"head\n{BEGIN}\nnew\n{END}\ntail"
    assert insert(once, "new", BEGIN, END) == once
    with pytest.raises(ValueError, match=f"--into must name a file with {BEGIN}"):
        insert("nothing here", "a table", BEGIN, END)
