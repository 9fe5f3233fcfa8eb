"""The documentation is plain English, as the section "Style" of ``CONTRIBUTING.md`` asks.

Colons and semicolons are right now and then, so there are bounds. The words to avoid have none.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`[^`]+`")
# a line, a heading, an item of a list, a sentence or a cell of a table begins
BEGINNING = r"(?:^ *(?:(?:\*|\d+\.|#+|>) +)?|(?<=[.!?] )|(?<=\| ))"


def words_to_avoid() -> list[str]:
    """The first column of the table below "Words"."""
    _, _, words = (ROOT / "CONTRIBUTING.md").read_text().partition("\n### Words\n")
    cells: list[str] = re.findall(r"^\| (`.+?) \|", words, re.MULTILINE)
    return [word for cell in cells for word in cell.strip("`").split("`, `")]


AVOIDED = rf"(?i)\b(?:{'|'.join(map(re.escape, words_to_avoid()))})\b"


def _found(pattern: str, page: Path, without: list[re.Pattern[str]]) -> Iterator[str]:
    """``file:line: text`` of each match, except in code."""
    text = page.read_text()
    lines = text.split("\n")
    for code in without:
        text = code.sub(_blank, text)
    for match in re.finditer(pattern, text, re.MULTILINE):
        number = text.count("\n", 0, match.start())
        yield f"{page.relative_to(ROOT)}:{number + 1}: {lines[number].strip()}"


def _blank(code: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", code[0])


def _on_all_pages(pattern: str, without: list[re.Pattern[str]]) -> list[str]:
    return [place for page in PAGES for place in _found(pattern, page, without)]


@pytest.mark.parametrize(
    ("pattern", "most"),
    [
        pytest.param(r"[a-z)`]: [a-z]", 59, id="colons in the middle of a sentence"),
        pytest.param(";", 59, id="semicolons"),
        pytest.param(BEGINNING + "What [a-z]", 5, id="sentences that begin with What"),
        pytest.param(BEGINNING + "Who ", 0, id="sentences that begin with Who"),
    ],
)
def test_the_documentation_has_few(pattern: str, most: int) -> None:
    places = _on_all_pages(pattern, [FENCED])
    assert len(places) <= most, "\n".join(["", *places])


def test_the_documentation_has_no_word_to_avoid() -> None:
    assert "in vain" in words_to_avoid()
    places = _on_all_pages(AVOIDED, [FENCED, INLINE])
    assert len(places) <= 8, "\n".join(["", *places])
