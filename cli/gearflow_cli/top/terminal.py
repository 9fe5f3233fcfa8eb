"""The terminal of a full screen: lines out, keys in, and everything as before at the end.

A frame is written in one piece, and only the lines that have changed. The screen is the alternate one, so
what the terminal showed before comes back.
"""

import os
import re
import shutil
import sys
import termios
import tty
from codecs import getincrementaldecoder
from collections.abc import Sequence
from contextlib import suppress
from io import StringIO
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.text import Text

_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[?2004h"
"""The alternate screen, no cursor, no line breaks that nobody has written, and marks around pasted text."""

_LEAVE: Final = "\x1b[?2004l\x1b[?7h\x1b[?25h\x1b[?1049l"

_SEQUENCE: Final = re.compile(
    r"\x1b\[200~(?P<pasted>.*?)(?:\x1b\[201~|\Z)|\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Za-z])|\x1b|[^\x1b]", re.DOTALL
)

_UNFINISHED: Final = re.compile(r"\x1b(?:\[[0-9;]*|O)?\Z")
"""The beginning of the sequence of a key, or the key esc."""

_REST: Final = 0.05
"""Seconds within which the rest of such a sequence comes, also over a slow line. Else it was esc."""

_UNFINISHED_PASTE: Final = re.compile(r"\x1b\[200~(?!.*\x1b\[201~)", re.DOTALL)

_REST_OF_PASTE: Final = 5.0
"""Seconds within which the next piece of a pasted text comes. Its end must not be taken for keys."""

_KEYS: Final[dict[str, str]] = {
    **{f"\x1b{start}{letter}": name for start in "[O" for letter, name in zip(
        "ABCDHF", ("up", "down", "right", "left", "home", "end"), strict=True
    )},
    "\x1b[1~": "home",
    "\x1b[4~": "end",
    "\x1b[7~": "home",
    "\x1b[8~": "end",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b[Z": "back tab",
    "\x1b": "esc",
    "\r": "enter",
    "\n": "enter",
    "\t": "tab",
    "\x7f": "backspace",
    "\b": "backspace",
    "\x06": "page down",
    "\x02": "page up",
    "\x0c": "redraw",
}  # fmt: skip


class Pasted(str):
    """A text that was pasted. It is no keys, whatever it has in it."""

    __slots__ = ()


def keys_in(text: str) -> list[str]:
    """The names of the keys in what was read, or their characters. Unknown keys are left out."""
    found: list[str] = []
    for part in _SEQUENCE.finditer(text):
        if part["pasted"] is not None:
            found.append(Pasted(part["pasted"]))
        elif (key := _KEYS.get(part[0], part[0])).isprintable():
            found.append(key)
    return found


def is_interactive() -> bool:
    """Whether a person sits at a terminal that can move its cursor."""
    if sys.stdin is None or not sys.stdin.isatty() or not sys.stdout.isatty():
        return False
    return os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


class FullScreen:
    """Owns the terminal while the block lasts."""

    def __init__(self) -> None:
        self._input = sys.stdin.fileno()
        self._output = sys.stdout.fileno()
        self._before: list[int | list[bytes | int]] | None = None
        self._shown: list[str] = []
        self._decoder = getincrementaldecoder("utf-8")("ignore")
        self._file = StringIO()
        self._console = Console(
            file=self._file, force_terminal=True, highlight=False, markup=False, emoji=False, width=1000
        )

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self._input)
        self.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError, termios.error):  # the terminal may be gone
            self.leave()

    def enter(self) -> None:
        """Take the terminal over, also when the program was stopped (Ctrl-Z) and goes on."""
        tty.setcbreak(self._input, termios.TCSADRAIN)  # keys that were pressed before count, too
        self._shown = []
        self._write(_ENTER)

    def leave(self) -> None:
        """Give the terminal back."""
        if self._before is not None:
            termios.tcsetattr(self._input, termios.TCSADRAIN, self._before)
        self._write(_LEAVE)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        try:
            found = os.get_terminal_size(self._output)
        except OSError:
            found = shutil.get_terminal_size()
        return found.columns or 80, found.lines or 24

    def forget(self) -> None:
        """The terminal may show something else now, so the next frame is written as a whole."""
        self._shown = []

    def show(self, lines: Sequence[Text]) -> None:
        """Write a frame, which has as many lines as the terminal has rows."""
        drawn = [self._draw(line) for line in lines]
        pieces: list[str] = []
        if len(drawn) != len(self._shown):
            pieces.append("\x1b[2J")
            self._shown = [""] * len(drawn)
        for number, (line, before) in enumerate(zip(drawn, self._shown, strict=True), 1):
            if line != before:
                pieces.append(
                    f"\x1b[{number};1H\x1b[2K{line}"
                )  # before: at the end it would take a last letter
        self._shown = drawn
        if pieces:
            self._write("".join(pieces))

    def _draw(self, line: Text) -> str:
        self._file.seek(0)
        self._file.truncate()
        self._console.print(line, end="", soft_wrap=True)
        return self._file.getvalue()

    def _write(self, text: str) -> None:
        rest = memoryview(text.encode(sys.stdout.encoding or "utf-8", "replace"))
        while rest:
            rest = rest[os.write(self._output, rest) :]

    async def keys(self) -> list[str]:
        """The next keys. Empty if the terminal is gone."""
        import anyio

        text = ""
        while True:
            with anyio.move_on_after(_wait_for_rest(text)) as scope:
                await anyio.wait_readable(self._input)
            if not scope.cancelled_caught:
                try:
                    data = os.read(self._input, 4096)
                except OSError:
                    return []
                if not data:
                    return []
                text += self._decoder.decode(data)
                if _wait_for_rest(text) is not None:
                    continue
            if found := keys_in(text):
                return found
            text = ""


def _wait_for_rest(text: str) -> float | None:
    """Seconds to wait for the rest of a key or of a pasted text. None if it is complete."""
    if _UNFINISHED_PASTE.search(text):
        return _REST_OF_PASTE
    return _REST if _UNFINISHED.search(text) else None
