"""Documentation and code are in plain English, as the section "Style" of ``CONTRIBUTING.md`` asks.

Colons and semicolons are right now and then, so there are bounds. The words to avoid have none.
"""

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = sorted(module for folder in ("gearflow", "cli") for module in (ROOT / folder).rglob("*.py"))
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(`+)[^`\n]+(?:\n[^`\n]+)?\1")
# a line, a heading, an item of a list, a sentence or a cell of a table begins
BEGINNING = r"(?:^ *(?:(?:\*|\d+\.|#+|>) +)?|(?<=[.!?] )|(?<=\| ))"


def words_to_avoid() -> list[str]:
    """The first column of the table below "Words"."""
    _, _, words = (ROOT / "CONTRIBUTING.md").read_text().partition("\n### Words\n")
    cells: list[str] = re.findall(r"^\| (`.+?) \|", words, re.MULTILINE)
    return [word for cell in cells for word in cell.strip("`").split("`, `")]


def _found(pattern: str, file: Path, text: str) -> Iterator[str]:
    """``file:line: text`` of each match in the text of a file, which may have blanks in the place of code."""
    lines = file.read_text().split("\n")
    for match in re.finditer(pattern, text, re.MULTILINE):
        number = text.count("\n", 0, match.start())
        yield f"{file.relative_to(ROOT)}:{number + 1}: {lines[number].strip()}"


def _without(code: re.Pattern[str], text: str) -> str:
    return code.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def _strings_and_comments(module: Path) -> str:
    """The source of a module with blanks in the place of everything else."""
    source = module.read_text().split("\n")
    shown = [" " * len(line) for line in source]
    with module.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if tokenize.tok_name[token.type] not in ("STRING", "FSTRING_MIDDLE", "COMMENT"):
                continue
            (first, begin), (last, end) = token.start, token.end
            for number in range(first, last + 1):
                line = source[number - 1]
                left = begin if number == first else 0
                right = end if number == last else len(line)
                shown[number - 1] = shown[number - 1][:left] + line[left:right] + shown[number - 1][right:]
    return "\n".join(shown)


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
    places = [place for page in PAGES for place in _found(pattern, page, _without(FENCED, page.read_text()))]
    assert len(places) <= most, "\n".join(["", *places])


def _pattern(words: list[str]) -> str:
    """Finds the words, also where a phrase goes on in the next line or comment."""
    gap = r"[ #]*[ \n][ #]*"
    return rf"(?i)\b(?:{'|'.join(words)})\b".replace(" ", gap)


def test_the_documentation_has_no_word_to_avoid() -> None:
    pattern = _pattern(words_to_avoid())
    prose = {page: _without(INLINE, _without(FENCED, page.read_text())) for page in PAGES}
    places = [place for page in PAGES for place in _found(pattern, page, prose[page])]
    assert places == [], "\n".join(["", *places])


def test_the_code_has_no_word_to_avoid_in_strings_and_comments() -> None:
    pattern = _pattern(words_to_avoid())
    prose = {module: _without(INLINE, _strings_and_comments(module)) for module in MODULES}
    places = [place for module in MODULES for place in _found(pattern, module, prose[module])]
    assert places == [], "\n".join(["", *places])
