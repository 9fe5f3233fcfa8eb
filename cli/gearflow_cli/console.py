"""Where output goes: results to stdout, all else to stderr; colours and bars only on a terminal."""

import sys
from typing import TYPE_CHECKING

from gearflow_cli.exits import ExitCode, Failure

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def is_terminal() -> bool:
    """Whether results go to a person."""
    return sys.stdout.isatty()


def show(renderable: "RenderableType") -> None:
    """Print something on the terminal."""
    _require_stdout()
    _console().print(renderable)


def write(text: str) -> None:
    """Print a plain text and end its line."""
    _require_stdout()
    sys.stdout.write(f"{text}\n")


def write_bytes(data: bytes) -> None:
    """Pass bytes on as they are, at once."""
    _require_stdout()
    sys.stdout.flush()
    rest = memoryview(data)
    while rest:  # with PYTHONUNBUFFERED this is the file itself, which may take less than all
        rest = rest[sys.stdout.buffer.write(rest) :]
    sys.stdout.buffer.flush()


def confirm(question: str) -> None:
    """Ask a person whether to go on.

    Raises:
        Failure: He says no, or there is nobody to ask.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise Failure(
            ExitCode.USAGE, f"{question} Nobody can answer, as standard input is no terminal: add --yes"
        )
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Failure(ExitCode.INTERRUPTED, "nothing was done")


def _require_stdout() -> None:
    """Results shall not vanish in silence. Raises OSError if the shell closed stdout."""
    if sys.__stdout__ is None:
        raise OSError("standard output is closed")


def error_console() -> "Console":
    """The terminal behind stderr, if there is one, for bars and warnings."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False)
