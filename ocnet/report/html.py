# SPDX-License-Identifier: MIT
"""A self-contained HTML page: text, tables and embedded pictures in one file."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 1080px; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin-top: 2.4rem; }
.lead { background: #f2f6fa; border-left: 4px solid #0072b2; padding: .6rem 1rem; }
.lead p { margin: .35rem 0; }
img { max-width: 100%; height: auto; border: 1px solid #ddd; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: left; }
td.number, th.number { text-align: right; }
pre { background: #f6f6f6; padding: .7rem 1rem; overflow-x: auto; font-size: .85rem; }
footer { margin-top: 3rem; color: #555; font-size: .9rem; }
"""


@dataclass(frozen=True)
class Table:
    """A table of text; columns whose cells all start like a number are set flush right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """One headed part of the page.

    Attributes:
        heading: Its title.
        paragraphs: Plain text, one entry for each paragraph.
        picture: PNG file to embed, if any.
        alt: What the picture shows, for readers who cannot see it.
        table: A table under the text, if any.
        preformatted: Text to show as typed, if any.
    """

    heading: str
    paragraphs: Sequence[str] = ()
    picture: Path | None = None
    alt: str = ""
    table: Table | None = None
    preformatted: str = ""


def write_page(
    path: str | Path,
    *,
    title: str,
    lead: Sequence[str],
    sections: Sequence[Section],
    footer: str = "",
) -> None:
    """Write the page; it refers to no other file and runs no script.

    Args:
        path: HTML file to write.
        title: Heading and window title.
        lead: The findings, one sentence or two each, shown first.
        sections: The rest of the page, in order.
        footer: Small print.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        '<div class="lead">',
        *(f"<p>{escape(sentence)}</p>" for sentence in lead),
        "</div>",
        *(_section(section) for section in sections),
    ]
    if footer:
        parts.append(f"<footer>{escape(footer)}</footer>")
    parts.append("</body></html>\n")
    Path(path).write_text("\n".join(parts), encoding="utf-8")


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.heading)}</h2>"]
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in section.paragraphs]
    if section.table is not None:
        parts.append(_table(section.table))
    if section.picture is not None:
        data = base64.b64encode(section.picture.read_bytes()).decode("ascii")
        parts.append(f'<img src="data:image/png;base64,{data}" alt="{escape(section.alt)}">')
    if section.preformatted:
        parts.append(f"<pre>{escape(section.preformatted)}</pre>")
    return "\n".join(parts)


def _table(table: Table) -> str:
    numeric = [
        bool(table.rows) and all(_is_number(row[c]) for row in table.rows)
        for c in range(len(table.header))
    ]
    classes = [' class="number"' if flag else "" for flag in numeric]

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{kind}>{escape(cell)}</{tag}>"
            for kind, cell in zip(classes, cells, strict=True)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in table.rows)
    head = f"<tr>{line('th', table.header)}</tr>"
    return f'<div class="scroll"><table>{head}{body}</table></div>'


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell in ("-", "")
