"""What the person at ``gearflow top`` has chosen, and what a key changes of it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal, NamedTuple, TypeAlias

Verb: TypeAlias = Literal[
    "quit", "look", "redraw", "pause", "purge", "cancel", "replay", "replay all", "open", "confirmed", "none"
]
"""What a key asks for that is not a matter of the screen alone."""


class TopPage(StrEnum):
    """The lists, in the order of their keys."""

    FUNCTIONS = "Functions"
    WORKERS = "Workers"
    JOBS = "Jobs"
    DEAD = "Dead letters"
    SERVERS = "Servers"


PAGES: Final = tuple(TopPage)

_ACTS: Final[dict[TopPage, dict[str, Verb]]] = {
    TopPage.FUNCTIONS: {"p": "pause", "x": "purge"},
    TopPage.WORKERS: {"p": "pause"},
    TopPage.JOBS: {"c": "cancel"},
    TopPage.DEAD: {"r": "replay", "R": "replay all", "x": "purge"},
    TopPage.SERVERS: {},
}

_MOVES: Final = ("up", "down", "page up", "page down", "home", "end", "k", "j", "g", "G")


@dataclass
class ListChoice:
    """The state of one list. Owns state."""

    key: str | None = None
    """The selected row. None until the person has moved, so the first row is selected."""

    index: int = 0
    """Its place the last time that it was drawn."""

    offset: int = 0
    """The first row that is visible."""

    sort: int = 0
    """The column to sort by, among those that can be sorted by."""

    inverted: bool = False
    """Whether the order is the other way round."""

    filter: str = ""
    """Only rows with this text are shown."""


class Question(NamedTuple):
    """Something to confirm with ``y``."""

    text: str
    verb: Verb
    subject: object
    """What it is about, which may not be the selected row any more when the answer comes."""


@dataclass
class Opened:
    """A text that covers the list: of a job, a worker or a server. Owns state."""

    title: str
    subject: object
    lines: Sequence[str] = ()
    offset: int = 0
    """The first line that is visible."""

    length: int = 0
    """Lines that there were in the last frame. Long ones are several."""


@dataclass
class Choices:
    """All that was chosen. Owns state."""

    page: TopPage = TopPage.FUNCTIONS
    lists: dict[TopPage, ListChoice] = field(default_factory=lambda: {page: ListChoice() for page in PAGES})
    function: str | None = None
    """The only function whose jobs and dead letters are shown."""

    typing: bool = False
    """Whether the filter is being typed."""

    question: Question | None = None
    opened: Opened | None = None
    help: bool = False
    message: str = ""
    """What the last act has done."""

    is_error: bool = False
    """Whether the message is one of a failure."""

    rows: int = 10
    """Rows that the last frame had room for."""

    total: int = 0
    """Rows that there were."""

    @property
    def listing(self) -> ListChoice:
        """The state of the list that is shown."""
        return self.lists[self.page]

    def say(self, message: str, *, is_error: bool = False) -> None:
        """Show a message until the next key."""
        self.message, self.is_error = message, is_error

    def press(self, key: str) -> Verb:
        """Take a key in. Returns what is to be done."""
        if key == "redraw":
            return "redraw"
        if self.question is not None:
            return self._answer(key)
        if self.typing:
            return self._type(key)
        self.say("")
        if self.help:
            self.help = False
            return "none"
        if key == "q":
            return "quit"
        if key == "?":
            self.help = True
            return "none"
        if self.opened is not None:
            return self._read(self.opened, key)
        return self._choose(key)

    def paste(self, text: str) -> Verb:
        """Take a pasted text in. Its first line goes into the filter, if that is being typed."""
        if self.typing:
            lines = (line.strip() for line in text.splitlines())
            first = next((line for line in lines if line), "")
            self.listing.filter += "".join(filter(str.isprintable, first))
            return self._filtered()
        if self.question is None:
            self.say("a pasted text is no keys. Press / first, to show only rows with it")
        return "none"

    def _answer(self, key: str) -> Verb:
        if key in ("y", "Y"):
            return "confirmed"
        self.question = None
        self.say("nothing was done")
        return "none"

    def _type(self, key: str) -> Verb:
        listing = self.listing
        match key:
            case "enter":
                self.typing = False
            case "esc":
                self.typing, listing.filter = False, ""
            case "backspace":
                listing.filter = listing.filter[:-1]
            case _ if len(key) == 1:
                listing.filter += key
            case _:
                return "none"
        return self._filtered()

    def _filtered(self) -> Verb:
        """The filter has changed."""
        listing = self.listing
        listing.key, listing.index, listing.offset = None, 0, 0
        return "look" if self.page in (TopPage.JOBS, TopPage.DEAD) else "none"

    def _read(self, opened: Opened, key: str) -> Verb:
        """A key while a text is open."""
        if key in ("esc", "enter", "left", "backspace"):
            self.opened = None
        elif key in _MOVES:
            last = max(0, opened.length - self.rows - 1)
            opened.offset = _moved(opened.offset, key, self.rows, last, step=1)
        else:
            return _ACTS[self.page].get(key, "none")
        return "none"

    def _choose(self, key: str) -> Verb:
        listing = self.listing
        if key in _MOVES:
            listing.index = _moved(listing.index, key, self.rows, max(0, self.total - 1), step=1)
            listing.key = ""  # the drawing finds out which row that is
            return "none"
        if key.isdecimal() and 1 <= int(key) <= len(PAGES):
            return self._go(PAGES[int(key) - 1])
        if key in ("tab", "right", "back tab", "left"):
            step = 1 if key in ("tab", "right") else -1
            return self._go(PAGES[(PAGES.index(self.page) + step) % len(PAGES)])
        match key:
            case "/":
                self.typing = True
            case "s":
                listing.sort += 1
            case "S":
                listing.sort -= 1
            case "i":
                listing.inverted = not listing.inverted
            case "esc":
                return self._widen()
            case " ":
                return "look"
            case "enter":
                return "open"
            case _:
                return _ACTS[self.page].get(key, "none")
        return "none"

    def _widen(self) -> Verb:
        """Show more: without the filter, then those of all functions."""
        if self.listing.filter:
            self.listing.filter = ""
        elif self.function is not None and self.page in (TopPage.JOBS, TopPage.DEAD):
            self.function = None
        else:
            return "none"
        return "look"

    def _go(self, page: TopPage) -> Verb:
        self.page = page
        return "look"


def _moved(place: int, key: str, page: int, last: int, *, step: int) -> int:
    match key:
        case "up" | "k":
            place -= step
        case "down" | "j":
            place += step
        case "page up":
            place -= page
        case "page down":
            place += page
        case "home" | "g":
            place = 0
        case _:
            place = last
    return max(0, min(place, last))
