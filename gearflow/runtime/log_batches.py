"""A log handler that writes records which are many and alike in batches, and without an object for each.

A worker logs a line for each run, and a record of ``logging`` costs more than a short run. If the handler of
the program is the only one that would get the record, and nothing of ``logging`` is replaced, then a few
values go to that handler instead. It writes them within 100 ms, before any other record, as the lines that
the records would be. Otherwise ``logging`` gets a record as always.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from math import inf
from types import FunctionType
from typing import Final, TextIO, TypeAlias, cast

from gearflow.runtime.fork import forget_in_children
from gearflow.runtime.run_records import are_records_plain

PERIOD: Final = 0.08
"""Seconds after which a batch is written."""

MOST: Final = 256
"""Rows after which a batch is written at once."""

_ATOMIC: Final[int] = getattr(select, "PIPE_BUF", 4096)
"""Bytes that a pipe takes in one piece, so that the lines of several processes do not mix."""

_SAMPLE: Final = "H:gearflow-sample:1"
_SAMPLE_NUMBER: Final = 1.23e-300

_LONGEST_NUMBER: Final = 24
"""Characters of a number that was formatted by ``%r``."""

_ROOT: Final = logging.root

_REPLACED: Final = ("info", "log", "_log", "makeRecord", "handle", "callHandlers")
"""Methods of loggers that tools for errors and traces replace."""


class RecordKind:
    """Records of one logger that differ in their time and in two fields only: a handle and a number.

    Args:
        logger: A logger right below one that is right below the root.
        fields: The fields of ``extra`` in their order.
        handle, number: The names of the two among them.
    """

    __slots__ = (
        "_above",
        "_fields",
        "_handle",
        "_handler",
        "_number",
        "form",
        "formatter",
        "level",
        "logger",
        "message",
    )

    def __init__(
        self,
        logger: logging.Logger,
        level: int,
        message: str,
        fields: Mapping[str, object],
        *,
        handle: str,
        number: str,
    ) -> None:
        self.logger = logger
        self.level = level
        self.message = message
        self.formatter: BatchFormatter | None = None  # that has made the form
        self.form: tuple[str, str] | None = None
        self._fields = fields
        self._handle = handle
        self._number = number
        self._handler: BatchHandler | None = None  # the last one that was alone
        self._above = logging.getLogger(logger.name.rpartition(".")[0])

    def log(self, handle: bytes, number: float) -> None:
        """Log a record. The caller has seen that its level is enabled."""
        handler, logger, above, handlers = self._handler, self.logger, self._above, _ROOT.handlers
        if (  # for each row, since a task may add a handler or a filter
            handler is None
            or not handler.rows
            or len(handlers) != 1
            or handlers[0] is not handler
            or logger.handlers
            or above.handlers
            or logger.filters
            or handler.filters
            or not logger.propagate
            or not above.propagate
        ):
            handler = self._handler = self._find()
            if handler is None:
                logger.log(self.level, self.message, extra=self._extra(handle, number))
                return
        rows = handler.rows
        rows.append((time.time(), self, handle, number))
        count = len(rows)
        if count == 1 or count >= MOST:
            handler.has_rows(count)

    def record(self, created: float, handle: bytes, number: float) -> logging.LogRecord:
        """The record for a row."""
        # Not as the logger makes it: another run may be the current one here.
        record = logging.LogRecord(self.logger.name, self.level, __file__, 0, self.message, (), None)
        record.created = created
        vars(record).update(self._extra(handle, number))
        return record

    def _extra(self, handle: bytes, number: float) -> dict[str, object]:
        text = handle.decode("utf-8", "surrogateescape")
        return {**self._fields, self._handle: text, self._number: number}

    def _find(self) -> BatchHandler | None:
        """The handler that alone gets these records, if nothing would look at them on their way."""
        logger, above = self.logger, self._above
        handler = _ROOT.handlers[0] if len(_ROOT.handlers) == 1 else None
        is_alone = (
            logger.parent is above
            and above.parent is _ROOT
            and logger.propagate
            and above.propagate
            and not (logger.handlers or above.handlers or logger.filters)
        )
        if (
            is_alone
            and isinstance(handler, BatchHandler)
            and handler.level <= self.level
            and not handler.filters
            and isinstance(handler.formatter, BatchFormatter)
            and _is_as_it_was(logger)
        ):
            return handler
        return None


Row: TypeAlias = tuple[float, RecordKind, bytes, float]
"""A record: its time, its kind, and the two fields."""


def _is_as_it_was(logger: logging.Logger) -> bool:
    """Whether a logger does what the module ``logging`` of Python says."""
    own = vars(logging)
    methods = map(vars(logging.Logger).get, _REPLACED)
    return (
        type(logger) is logging.Logger
        and are_records_plain()
        and all(
            isinstance(method, FunctionType) and cast(object, method.__globals__) is own for method in methods
        )
    )


class BatchFormatter(logging.Formatter):
    """Formats a row as it formats the record.

    The time has a fixed place in each line, ``time_place``. ``number_format`` is the form of the number.
    """

    time_place = slice(0, 0)
    number_format = "%r"

    def time_text(self, created: float) -> tuple[str, float]:
        """The text of a time, and the time until which it stays the same."""
        raise NotImplementedError  # there is no form of a time for all formatters

    def blocks(self, rows: Sequence[Row]) -> Iterator[str]:
        """Lines for the rows, in blocks that a pipe takes in one piece."""
        handles = _plain([row[2] for row in rows])
        return _joined(map(self._line, rows) if handles is None else self._blocks(rows, handles))

    def _blocks(self, rows: Sequence[Row], handles: Sequence[str]) -> Iterator[str]:
        created, kinds, _, numbers = zip(*rows, strict=True)
        values: list[object] = [None] * (2 * len(rows))
        values[::2], values[1::2] = handles, numbers
        longest_values = max(map(len, handles)) + _LONGEST_NUMBER
        end = 0
        while end < len(rows):  # as long as the text of the time is the same
            begin = end
            clock, until = self.time_text(created[begin])
            end = max(bisect_left(created, until, begin), begin + 1)
            found = {kind: self._form(kind, clock) for kind in set(kinds[begin:end])}
            forms = {kind: form for kind, form in found.items() if form is not None}
            if len(forms) < len(found):
                yield from map(self._line, rows[begin:end])
                continue
            longest = max(len(form.encode()) for form in forms.values()) + longest_values
            step = max(_ATOMIC // longest, 1)
            for first in range(begin, end, step):
                last = min(first + step, end)
                form = "".join([forms[kind] for kind in kinds[first:last]])
                yield form % tuple(values[2 * first : 2 * last])

    def _form(self, kind: RecordKind, clock: str) -> str | None:
        """The line of this kind at this time, as a form for ``%``. None if it cannot have one."""
        if kind.formatter is not self:
            kind.formatter = self
            kind.form = self._around_time(kind)
        return None if kind.form is None else clock.join(kind.form)

    def _around_time(self, kind: RecordKind) -> tuple[str, str] | None:
        """The form before and behind the time, as a sample has it."""
        line = self.format(kind.record(0.0, _SAMPLE.encode(), _SAMPLE_NUMBER)) + "\n"
        number = self.number_format % _SAMPLE_NUMBER
        if line.count(_SAMPLE) != 1 or line.count(number) != 1 or line.find(number) < line.find(_SAMPLE):
            return None
        form = line.replace("%", "%%").replace(_SAMPLE, "%s").replace(number, self.number_format)
        return form[: self.time_place.start], form[self.time_place.stop :]

    def _line(self, row: Row) -> str:
        created, kind, handle, number = row
        return f"{self.format(kind.record(created, handle, number))}\n"


def _plain(handles: Sequence[bytes]) -> list[str] | None:
    """Handles as texts, if every format shows them as they are. Looks at all of them at once."""
    joined = b" ".join(handles)
    if not joined.isascii() or b'"' in joined or b"\\" in joined:
        return None
    text = joined.decode()
    blanks = len(handles) - 1
    if text.isprintable() and text.startswith("H:") and text.count(" ") == blanks == text.count(" H:"):
        return text.split(" ")
    return None


class BatchHandler(logging.StreamHandler[TextIO]):
    """Writes records at once, and rows in batches. Owns the rows, and the thread that writes them.

    A record is written after the rows that came before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self._is_writing = False
        self._written = -inf  # when the last batch was
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        forget_in_children(self, BatchHandler._forget)

    def has_rows(self, count: int) -> None:
        """A row was added, so there are so many. They are written soon, or at once if that was not lately."""
        if count >= MOST or time.monotonic() >= self._written + PERIOD:
            self.flush()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="gearflow-log", daemon=True)
            self._thread.start()
        self._wake.set()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        self._write_rows()
        super().emit(record)

    def flush(self) -> None:
        """Write the rows now."""
        self.acquire()
        try:
            self._write_rows()
            super().flush()
        finally:
            self.release()

    def flush_within(self, seconds: float) -> None:
        """The same before the process ends, unless another write lasts longer. Also in a signal handler."""
        lock = self.lock
        if lock is not None and not self._is_writing and lock.acquire(timeout=seconds):
            with suppress(Exception):  # the signal may have come in the middle of a write
                self._write_rows()
            lock.release()

    def close(self) -> None:
        """Write the rows, and end the thread."""
        self.flush()
        self._is_closed = True
        self._wake.set()
        super().close()

    def _write_rows(self) -> None:
        """Write all rows. The caller has the lock."""
        count = len(self.rows)
        if not count or self._is_writing:
            return
        self._is_writing = True
        rows = self.rows[:count]
        del self.rows[:count]  # others may have been added
        try:
            assert isinstance(self.formatter, BatchFormatter)
            for block in self.formatter.blocks(rows):
                self.stream.write(block)
            self.stream.flush()
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001  (as all handlers do)
            created, kind, handle, number = rows[-1]
            self.handleError(kind.record(created, handle, number))
        finally:
            self._is_writing = False
            self._written = time.monotonic()

    def _serve(self) -> None:
        while not self._is_closed:
            self._wake.wait()
            self._wake.clear()
            while self.rows:
                time.sleep(PERIOD)
                self.flush()

    def _forget(self) -> None:
        """We are in a forked child. The rows are the parent's."""
        self.rows.clear()
        self._is_writing = False
        self._thread = None
        self._wake = threading.Event()


def _joined(blocks: Iterable[str]) -> Iterator[str]:
    """Blocks of lines, joined as far as a pipe takes them in one piece."""
    piece: list[str] = []
    size = 0
    for block in blocks:
        length = len(block) if block.isascii() else len(block.encode("utf-8", "surrogateescape"))
        if size + length > _ATOMIC and piece:
            yield "".join(piece)
            piece, size = [], 0
        piece.append(block)
        size += length
    yield "".join(piece)
