"""The progress of a running job or of a search, on a terminal or in a pipe.

Partial output goes to stdout, warnings to stderr, and progress to a bar on stderr if that is a terminal.
"""

import math
import sys
from codecs import getincrementaldecoder
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from gearflow_cli import output
from gearflow_cli.errors import tell
from gearflow_cli.text import indented, printable, printable_lines

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from gearflow.client import JobEvent


class ProgressView:
    """Shows the events of one job. The end of the block removes the progress bar.

    Args:
        function: The function of the job.
        write: Takes partial output in place of stdout.
        values: Partial output consists of values, and each gets a line of its own. Else each piece gets one
            that does not end a line itself.
    """

    def __init__(
        self, function: str, write: Callable[[bytes], object] | None = None, *, values: bool = False
    ) -> None:
        self._function = function
        self._write_elsewhere = write
        self._values = values
        self._decoder = getincrementaldecoder("utf-8")("backslashreplace")
        self._bar: tuple[Progress, TaskID] | None = None
        self._source: bytes | None = None  # the handle of the last partial output

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar[0].stop()

    def show(self, event: "JobEvent") -> None:
        """Show one event."""
        from gearflow.protocol.packets import WorkData, WorkStatus, WorkWarning

        match event:
            case WorkData(handle=handle, data=data):
                if self._source not in (None, handle):  # submitted again, to another server or a new one
                    self._around_the_bar(
                        lambda: tell("warning: the job runs again, and its output begins again")
                    )
                self._source = handle
                if self._write_elsewhere is not None:
                    self._write_elsewhere(data)
                else:
                    line = data if data.endswith(b"\n") and not self._values else data + b"\n"
                    self._around_the_bar(lambda: self._write(line))
            case WorkWarning(data=data):
                text = indented(data.decode("utf-8", "backslashreplace").rstrip())
                self._around_the_bar(lambda: tell(f"warning: {text}"))
            case WorkStatus(numerator=numerator, denominator=denominator):
                if sys.stderr.isatty():
                    self._progress(_number(numerator), _number(denominator))

    def _write(self, data: bytes) -> None:
        """Write a part of the output, which may end within a character."""
        if output.is_terminal():
            data = printable_lines(self._decoder.decode(data)).encode()
        output.write_bytes(data)

    def _progress(self, done: float, total: float) -> None:
        if self._bar is None:
            from rich.markup import escape
            from rich.progress import Progress

            bar = Progress(console=output.error_console(), transient=True)
            self._bar = bar, bar.add_task(escape(printable(self._function)))
            bar.start()
        bar, row = self._bar
        bar.update(row, completed=done, total=total or None)

    def _around_the_bar(self, write: Callable[[], None]) -> None:
        if self._bar is None:
            write()
            return
        self._bar[0].stop()
        write()
        self._bar[0].start()


class SearchProgress:
    """Shows how far a search among many jobs has come. The end of the block removes the progress bar."""

    def __init__(self) -> None:
        self._bar: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.hide()

    def show(self, searched: int, total: int | None) -> None:
        """Show that about so many of these jobs were searched, if stderr is a terminal."""
        if not sys.stderr.isatty():
            return
        text = f"searched {searched:,}" + (f" of {total:,} jobs" if total is not None else " jobs")
        if self._bar is None:
            from rich.progress import BarColumn, Progress, TextColumn

            columns = TextColumn("{task.description}"), BarColumn()
            bar = Progress(*columns, console=output.error_console(), transient=True)
            self._bar = bar, bar.add_task(text, total=total, completed=searched)
            bar.start()
        bar, row = self._bar
        bar.update(row, description=text, completed=searched, total=total)

    def hide(self) -> None:
        """Remove the bar, because something else is to be written."""
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None


class ResultFile:
    """A file for a result, in place of stdout. It is made when the first bytes come.

    ``write`` is None if there is no file.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: FileIO | None = None
        self.write: Callable[[bytes], object] | None = None if path is None else self._write

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, data: bytes) -> None:
        if self._file is None:
            assert self._path is not None  # else there is no ``write``
            self._file = self._path.open("wb", buffering=0)
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]


def _number(text: bytes) -> float:
    """Read a number of a progress report. Other clients may send any bytes."""
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if math.isfinite(number) else 0.0
