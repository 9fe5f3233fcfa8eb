"""The pictures of the dashboard in ``docs/pictures``, which tests take in passing.

    GEARFLOW_PICTURES=1 python -m pytest tests/web

writes them again. Without the variable a test takes each picture as well, and only looks whether the docs
have one of that name.
"""

import os
from pathlib import Path
from typing import Final

from playwright.sync_api import Page, ViewportSize, expect

from tests.conftest import ROOT

FOLDER: Final = ROOT / "docs" / "pictures"

SIZE: Final[ViewportSize] = {"width": 1180, "height": 740}
"""Of a browser that takes pictures."""

NARROW: Final[ViewportSize] = {"width": 390, "height": 740}
"""Of the browser of a telephone."""

VARIABLE: Final = "GEARFLOW_PICTURES"


def take(tab: Page, name: str) -> None:
    """Take a picture of what the tab shows. The docs have it as ``pictures/NAME.png``."""
    expect(tab.locator("#stream")).to_have_text("Live")
    picture = tab.screenshot(animations="disabled", caret="hide")
    file = picture_file(name)
    if os.environ.get(VARIABLE):
        FOLDER.mkdir(exist_ok=True)
        file.write_bytes(picture)
    assert picture.startswith(b"\x89PNG")
    assert file.exists(), f"write it with: {VARIABLE}=1 python -m pytest tests/web"


def picture_file(name: str) -> Path:
    """Where the docs have a picture."""
    return FOLDER / f"{name}.png"
