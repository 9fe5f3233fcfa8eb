"""Pictures of terminals in ``docs``: SVG without fonts from elsewhere, with a background of their own.

A test that takes a picture compares its words with those of the file. ``WRITE_SCREENS=1`` writes the file.
"""

import html
import os
import re
from io import StringIO
from typing import Final

from rich.console import Console
from rich.text import Text

from tests.conftest import ROOT

FOLDER: Final = ROOT / "docs" / "pictures"
WRITE: Final = "WRITE_SCREENS"

_FROM_ELSEWHERE: Final = re.compile(r"<!--.*?-->|@font-face \{.*?\}\s*", re.DOTALL)


def terminal(lines: list[Text], columns: int, title: str, *, unique: str | None = None) -> str:
    """A terminal that shows lines, as SVG."""
    console = Console(
        record=True, width=columns, file=StringIO(), force_terminal=True, color_system="truecolor"
    )
    for line in lines:
        for part in line.divide(range(columns, len(line), columns)):
            console.print(part, soft_wrap=True)
    drawn = _FROM_ELSEWHERE.sub("", console.export_svg(title=title, unique_id=unique))
    return re.sub(r"[ \t]+$", "", drawn, flags=re.MULTILINE).strip() + "\n"


def compare(name: str, drawn: str) -> None:
    """Check that ``docs/pictures/NAME.svg`` has the words of a picture, apart from its figures and times."""
    file = FOLDER / f"{name}.svg"
    if os.environ.get(WRITE):
        file.write_text(drawn)
    differing = sorted(words(drawn) ^ words(file.read_text()))
    assert not differing, f"with {WRITE}=1 the test writes {file.name} again"


def words(drawn: str) -> set[str]:
    """The words in a picture that are the same each time."""
    letters = html.unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", drawn, flags=re.DOTALL))
    return set(re.findall(r"[^\W\d_]{3,}", letters))
