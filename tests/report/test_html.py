# SPDX-License-Identifier: MIT
"""The page: self-contained, escaped, complete."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

from ocnet.report import Section, Table, write_page

PICTURE = b"\x89PNG planted bytes"


class Tags(HTMLParser):
    """Collects tags and checks that they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(tmp_path: Path) -> tuple[str, Tags]:
    picture = tmp_path / "p.png"
    picture.write_bytes(PICTURE)
    sections = [
        Section("A <b>heading</b>", ["one & two"], picture, 'alt "text"'),
        Section("Numbers", table=Table(["name", "value"], [["x<y", "0.5"], ["z", "-"]])),
        Section("As typed", preformatted="a\n  b <c>"),
    ]
    path = tmp_path / "page.html"
    write_page(path, title="T & T", lead=["found: 1 < 2"], sections=sections, footer="small")
    text = path.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    return text, tags


def test_pictures_are_embedded_to_the_byte(tmp_path: Path) -> None:
    _, tags = page(tmp_path)
    (image,) = [attributes for tag, attributes in tags.seen if tag == "img"]
    kind, _, data = str(image["src"]).partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == PICTURE
    assert image["alt"] == 'alt "text"'


def test_page_refers_to_nothing_outside(tmp_path: Path) -> None:
    text, tags = page(tmp_path)
    assert not re.search(r"https?://|//cdn|@import|url\(", text)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags.seen}


def test_text_is_escaped(tmp_path: Path) -> None:
    text, tags = page(tmp_path)
    assert "A &lt;b&gt;heading" in text
    assert "x&lt;y" in text
    assert "a\n  b &lt;c&gt;" in text
    assert "b" not in {tag for tag, _ in tags.seen}


def test_columns_of_numbers_are_flush_right(tmp_path: Path) -> None:
    _, tags = page(tmp_path)
    cells = [attributes.get("class") for tag, attributes in tags.seen if tag == "td"]
    assert cells == [None, "number", None, "number"]
