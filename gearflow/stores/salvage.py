"""Reads what can be read of a damaged file.

SQLite gives up at the first damaged page; the rows behind it are still there. So rows are read by ranges of
their keys: forwards until it fails, then backwards from the end; what is left between is divided, and the
parts are treated alike, until nothing is left or ``_FRUITLESS`` attempts in a row have brought nothing (most
of a gap may be nothing). Every row has a checksum, so what is kept is what was written.

If the first page is damaged, SQLite opens nothing. The file is then read from a copy whose first page is that
of an empty one: in all files, the tables of jobs and results begin on the same pages (see ``schema``).
"""

from __future__ import annotations

import shutil
import sqlite3
from collections import deque
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from gearflow.broker.store import Ended, StoredJob
from gearflow.errors import StoreError
from gearflow.stores import schema
from gearflow.stores.reading import Reader
from gearflow.stores.rows import JOB_DEAD, JOB_HEAD, RECORD_COLUMNS, RECORD_DEAD, DamagedRow, Row

_FRUITLESS: Final = 2000
_HIGHEST: Final = 1 << 62  # key


def open_damaged(path: Path, work: Path) -> sqlite3.Connection:
    """The damaged file, or a copy of it at ``work``, in such a way that something can be read.

    Raises:
        StoreError: Nothing can.
        OSError: There is no room for the copy.
    """
    log = path.with_name(path.name + "-wal")
    has_log = log.exists() and log.stat().st_size > 0
    connection = _connection(path, "mode=ro" if has_log else "mode=ro&immutable=1")
    if _is_readable(connection):
        return connection
    connection.close()
    shutil.copyfile(path, work)
    with suppress(FileNotFoundError):
        shutil.copyfile(f"{path}-wal", f"{work}-wal")
    for version in range(schema.version(), 0, -1):
        _replace_first_page(work, version)
        connection = _connection(work, "mode=rw")
        if _is_readable(connection):
            return connection
        connection.close()
    raise StoreError(
        f"nothing in {path} can be read, or it is no store's file; put a copy of it back, "
        f"or move it and {path.name}-lock away to begin anew"
    )


def _connection(path: Path, how: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.as_uri()}?{how}", uri=True, isolation_level=None)
    connection.text_factory = _any_text
    return connection


def _any_text(text: bytes) -> str:
    return text.decode("utf-8", "replace")  # the checksum will tell


def _is_readable(connection: sqlite3.Connection) -> bool:
    with suppress(sqlite3.Error):
        tables = schema.tables_of(connection)
        return tables in map(schema.expected_tables, range(1, schema.version() + 1))
    return False


def _replace_first_page(work: Path, version: int) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as empty:
        schema.migrate(empty, version)
        page = bytearray(empty.serialize()[: schema.PAGE])
    page[18:20] = b"\2\2"  # the file has a write-ahead log
    pages = max(1, work.stat().st_size // len(page))
    page[28:32] = pages.to_bytes(4, "big")
    page[32:40] = bytes(8)  # no free pages that one could know of
    with work.open("r+b") as file:
        file.write(page)


class Salvage:
    """Reads what can be read."""

    def __init__(self, source: sqlite3.Connection) -> None:
        self._source = source
        self._reader = Reader.__new__(Reader)  # whose beginning would ask for what may not be readable
        self._reader.connection = source

    def jobs(self) -> Iterator[tuple[StoredJob, bool]]:
        """Each job with its workload, and whether it is a dead letter."""
        query = (
            f"SELECT {JOB_HEAD}, workload FROM jobs NOT INDEXED WHERE number BETWEEN ? AND ? ORDER BY number"
        )
        for row in self._rows(query):
            with suppress(sqlite3.Error, DamagedRow):
                yield self._reader.whole_job(row), row[JOB_DEAD] != 0

    def records(self) -> Iterator[tuple[Ended, bool]]:
        """Each result, and whether it is that of a dead letter."""
        query = f"SELECT {RECORD_COLUMNS} FROM records NOT INDEXED WHERE place BETWEEN ? AND ? ORDER BY place"
        for row in self._rows(query):
            with suppress(sqlite3.Error, DamagedRow):
                yield self._reader.whole_record(row), row[RECORD_DEAD] != 0

    def paused(self) -> tuple[bytes, ...] | None:
        """The functions that are paused; None if that cannot be read."""
        with suppress(sqlite3.Error, DamagedRow):
            return self._reader.paused() if schema.version_of(self._source) > 1 else ()
        return None

    def _rows(self, query: str) -> Iterator[Row]:
        """The readable rows, by ranges of their keys, which are their first columns; some of them twice."""
        ranges = deque([(0, _HIGHEST)])
        fruitless = 0
        while ranges and fruitless < _FRUITLESS:
            fruitless += 1
            first, last = ranges.popleft()
            with suppress(sqlite3.Error):
                for row in self._source.execute(query, (first, last)):
                    yield row
                    first = max(first, row[0] + 1)
                    fruitless = 0
                continue
            with suppress(sqlite3.Error):
                for row in self._source.execute(f"{query} DESC", (first, last)):
                    yield row
                    last = min(last, row[0] - 1)
                    fruitless = 0
                continue
            if first < last:
                ranges += _divided(first, last)


def _divided(first: int, last: int) -> Iterator[tuple[int, int]]:
    """A small range in halves; a large one in parts that grow, for what there is will be at its beginning."""
    if last - first < 1 << 12:
        middle = (first + last) // 2
        yield first, middle
        yield middle + 1, last
        return
    start, size = first, 256
    while start <= last:
        yield start, min(last, start + size - 1)
        start, size = start + size, size * 4
