"""Where output goes: results to stdout, all else to stderr; colours and bars only on a terminal."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def is_terminal() -> bool:
    """Whether results go to a person."""
    return sys.stdout.isatty()


def show(renderable: "RenderableType") -> None:
    """Print something on the terminal."""
    _console().print(renderable)


def write(text: str) -> None:
    """Print a plain text and end its line."""
    sys.stdout.write(f"{text}\n")


def write_bytes(data: bytes) -> None:
    """Pass bytes on as they are, at once."""
    sys.stdout.flush()
    rest = memoryview(data)
    while rest:  # with PYTHONUNBUFFERED this is the file itself, which may take less than all
        rest = rest[sys.stdout.buffer.write(rest) :]
    sys.stdout.buffer.flush()


def error_console() -> "Console":
    """The terminal behind stderr, if there is one, for bars and warnings."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False)
