"""A person at a terminal, which is a real one, with the real program in it."""

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.cli.shell import COMMAND

PATIENCE: Final = 20.0

KEYS: Final = {
    "enter": "\r",
    "esc": "\x1b",
    "up": "\x1b[A",
    "down": "\x1b[B",
    "page down": "\x1b[6~",
    "end": "\x1b[F",
    "tab": "\t",
}

_PIECE: Final = re.compile(rb"\x1b\[([?0-9;]*)([A-Za-z])|([^\x1b]+)|(\x1b)", re.DOTALL)


class Glass:
    """What a terminal shows: as much of one as the program uses."""

    def __init__(self) -> None:
        self.rows: dict[int, str] = {}
        self.is_alternate = False
        self.has_cursor = True
        self.marks_pasted = False
        self.colours: set[str] = set()
        self._row = 1
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Show what the program has written. A sequence or letter may be cut off at the end."""
        data = self._rest + data
        cut = data.rfind(b"\x1b", max(0, len(data) - 16))
        if cut >= 0 and not re.match(rb"\x1b\[[?0-9;]*[A-Za-z]", data[cut:]):
            data, self._rest = data[:cut], data[cut:]
        else:
            self._rest = b""
        for values, kind, text, _ in _PIECE.findall(data):
            if text:
                self.rows[self._row] = self.rows.get(self._row, "") + text.decode("utf-8", "replace")
            else:
                self._steer(values.decode(), kind.decode())

    def _steer(self, values: str, kind: str) -> None:
        match kind, values:
            case "H", _:
                self._row = int(values.partition(";")[0] or 1)
            case "J", "2":
                self.rows.clear()
            case "K", "2":
                self.rows[self._row] = ""
            case "h" | "l", "?1049":
                self.is_alternate = kind == "h"
                self.rows.clear()
            case "h" | "l", "?25":
                self.has_cursor = kind == "h"
            case "m", _:
                self.colours |= {value for value in values.split(";") if re.fullmatch("[34]\\d", value)}
            case "h" | "l", "?7":
                pass
            case "h" | "l", "?2004":
                self.marks_pasted = kind == "h"
            case _:
                raise AssertionError(f"the program has sent CSI {values} {kind}")

    @property
    def lines(self) -> list[str]:
        """The rows from the first one to the last that has something."""
        return [self.rows.get(number, "").rstrip() for number in range(1, max(self.rows, default=0) + 1)]

    @property
    def text(self) -> str:
        """All of them."""
        return "\n".join(self.lines)


class Person:
    """Looks at the screen of a program, and presses keys."""

    def __init__(self, process: "subprocess.Popen[bytes]", terminal: int) -> None:
        self.process = process
        self.glass = Glass()
        self._terminal = terminal

    def press(self, *keys: str) -> None:
        """Press keys, by their names or as characters."""
        self.write(*(KEYS.get(key, key).encode() for key in keys))

    def write(self, *pieces: bytes) -> None:
        """Send bytes, each piece by itself."""
        for piece in pieces:
            os.write(self._terminal, piece)

    def paste(self, text: str) -> None:
        """Paste a text, as terminals do it: with marks around it only if the program has asked for them."""
        marked = f"\x1b[200~{text}\x1b[201~" if self.glass.marks_pasted else text
        pieces = marked.replace("\n", "\r").encode()
        self.write(*(pieces[place : place + 1000] for place in range(0, len(pieces), 1000)))

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the window."""
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def see(self, *texts: str, without: Sequence[str] = ()) -> str:
        """Wait until the screen has all these texts, and none of the others. Returns what it shows."""
        return self.wait_for(
            lambda shown: all(text in shown for text in texts) and not any(text in shown for text in without),
            f"{texts} without {without}",
        )

    def wait_for(self, is_there: Callable[[str], bool], what: str = "it") -> str:
        """Wait until the screen is as it should be."""
        deadline = time.monotonic() + PATIENCE
        while not is_there(self.glass.text):
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"no {what} on the screen:\n{self.glass.text}")
        return self.glass.text

    def end(self) -> int:
        """Wait for the end of the program. Returns the exit code."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline - time.monotonic()):
            pass
        return self.process.wait(PATIENCE)

    @property
    def is_line_by_line(self) -> bool:
        """Whether it shows what is typed, and gives it to programs by lines, as a shell wants it."""
        modes = termios.tcgetattr(self._terminal)[3]
        return bool(modes & termios.ICANON and modes & termios.ECHO)

    def signal(self, number: int) -> None:
        """Send the program a signal."""
        self.process.send_signal(number)

    def stop(self) -> None:
        """Stop the program as Ctrl-Z does, and wait until it is stopped."""
        self.signal(signal.SIGTSTP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def _read(self, seconds: float) -> bool:
        """Take in what the program writes next. False if there is nothing in time, or no program."""
        if seconds <= 0 or not select.select([self._terminal], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._terminal, 65536)
        except OSError:  # the other end is closed
            return False
        self.glass.feed(data)
        return bool(data)


@contextmanager
def at_terminal(
    *arguments: str, columns: int = 80, rows: int = 24, directory: Path | None = None, **environment: str
) -> Generator[Person, None, None]:
    """A program in a terminal of its own, for the time of the block."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    hidden = ("GEARFLOW_", "GEARMAN_", "FORCE_COLOR", "NO_COLOR", "COLUMNS", "LINES", "COLORTERM")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=its,
        stdout=its,
        stderr=its,
        cwd=directory,
        env=clean | {"TERM": "xterm-256color"} | environment,
        preexec_fn=lambda: os.login_tty(its),
    )
    os.close(its)
    try:
        yield Person(process, ours)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.close(ours)
