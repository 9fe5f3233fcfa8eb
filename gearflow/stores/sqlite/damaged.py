"""Reads the rows of a damaged file that can be read.

**Reading.** SQLite stops at the first damaged page, but the rows behind it are still there. So rows are read
by ranges of their keys: forwards until that fails, then backwards from the end. The rest is divided into
smaller ranges, until nothing is left or ``_FRUITLESS`` ranges in a row had no row (a gap may be mostly
empty). Every row has a checksum, so whatever is kept is what was written. If the first page is damaged,
SQLite opens nothing. The file is then read from a copy with the first page of an empty file, because the
tables of jobs and results begin on the same pages in all files (see ``schema``).

**Lost trees.** If rows are missing then, all pages of the file are searched for them (see ``leaves``). A job
that is found this way is not taken if its result is there. If the list of free pages is damaged as well, a
job may be one that ended long ago. It must neither be lost nor run again, so it becomes a dead letter, and an
operator decides. A result or a part of a stream that is found then is not taken. Parts whose job is lost are
loose in the new file.

A page whose number of rows is damaged may show rows that were deleted (see ``leaves``). SQLite may read them,
too. They are left out, unless rows are missing.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections import deque
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from gearflow.broker.storage import JobRecord, Renumbered, Setting, StoredJob
from gearflow.errors import StoreError
from gearflow.stores.sqlite import schema
from gearflow.stores.sqlite.leaves import Leaves
from gearflow.stores.sqlite.packs import Pack, is_pack, numbers_in
from gearflow.stores.sqlite.reader import Reader
from gearflow.stores.sqlite.rows import (
    JOB_DEAD,
    JOB_HEAD,
    RECORD_COLUMNS,
    RECORD_DEAD,
    SHORT_RECORD,
    DamagedRow,
    Row,
    row_record,
)
from gearflow.stores.sqlite.settings import SETTING_COLUMNS, named, row_setting
from gearflow.stores.sqlite.streams import STREAM_COLUMNS, row_parts

_FRUITLESS: Final = 2000
_HIGHEST: Final = 1 << 62  # key
_ORDERS: Final = ("ASC", "ASC LIMIT 1", "DESC", "DESC LIMIT 1")
"""Python's sqlite3 reads one row ahead and drops a row if the next one fails. ``LIMIT 1`` gets that row."""


def open_damaged(path: Path, work: Path) -> sqlite3.Connection:
    """Open the damaged file, or a copy of it at ``work``, so that something can be read.

    Raises:
        StoreError: Nothing can be read.
        OSError: The copy does not fit on the disk.
    """
    connection = _connection(path, "mode=ro" if _has_log(path) else "mode=ro&immutable=1")
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
        f"or move it and {path.name}-lock away to start empty"
    )


def _has_log(path: Path) -> bool:
    log = path.with_name(f"{path.name}-wal")
    return log.exists() and log.stat().st_size > 0


def _connection(path: Path, how: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.as_uri()}?{how}", uri=True, isolation_level=None)
    connection.text_factory = _any_text
    return connection


def _any_text(text: bytes) -> str:
    return text.decode("utf-8", "replace")  # the checksum notices


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
    page[32:40] = bytes(7) + b"\1"  # no list of free pages, although there is one
    with work.open("r+b") as file:
        file.write(page)


def is_sound(connection: sqlite3.Connection) -> bool:
    """Whether the pages of a file are not damaged, as far as SQLite can see."""
    with suppress(sqlite3.Error):
        return bool(connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok")
    return False


class DamagedTables(Reader):
    """Reads the rows of a damaged file that can be read."""

    def __init__(self, connection: sqlite3.Connection, leaves: Leaves | None) -> None:
        """``leaves`` know the rows to leave out."""
        super().__init__(connection)
        self._leaves = leaves
        self.failed = False
        """Whether a part of a table could not be read."""

    def readable_jobs(self) -> Iterator[tuple[StoredJob, bool]]:
        """Each job with its workload, and whether it is a dead letter."""
        for row in self._rows("jobs", "number", f"{JOB_HEAD}, workload"):
            with suppress(sqlite3.Error, DamagedRow):
                yield self.whole_job(row), row[JOB_DEAD] != 0

    def readable_records(self) -> Iterator[tuple[JobRecord, bool]]:
        """Each result, and whether it is the result of a dead letter."""
        for row in self._rows("records", "place", RECORD_COLUMNS):
            with suppress(sqlite3.Error, DamagedRow):
                if is_pack(row):
                    yield from ((record, False) for record in Pack(row))
                else:
                    yield self.whole_record(row), row[RECORD_DEAD] != 0

    def ended(self) -> dict[int, bool]:
        """The numbers of the readable results, and whether they are of dead letters."""
        found: dict[int, bool] = {}
        for row in self._rows("records", "place", SHORT_RECORD):
            with suppress(DamagedRow):
                if is_pack(row):
                    found.update(dict.fromkeys(numbers_in(row)[0], False))
                else:
                    found[row_record(row).number] = row[RECORD_DEAD] != 0
        return found

    def readable_streams(self) -> Iterator[Row]:
        """The rows with parts of streams."""
        if schema.version_of(self.connection) >= schema.WITH_STREAMS:
            for row in self._rows("streams", "id", STREAM_COLUMNS):
                with suppress(DamagedRow):
                    row_parts(row)
                    yield row

    def readable_paused(self) -> tuple[bytes, ...] | None:
        """The paused functions, or None if they cannot be read."""
        with suppress(sqlite3.Error, DamagedRow):
            return self.paused() if schema.version_of(self.connection) > 1 else ()
        return None

    def readable_renumbered(self) -> tuple[Renumbered, ...] | None:
        """The stores from which jobs were copied, or None if they cannot be read."""
        with suppress(sqlite3.Error, DamagedRow):
            return schema.read_renumbered(self.connection)
        return None

    def readable_settings(self) -> Iterator[Setting | str]:
        """Each setting, or the kind and name of one that is not what was written."""
        if schema.version_of(self.connection) >= schema.WITH_SETTINGS:
            for row in self._rows("settings", "id", SETTING_COLUMNS):
                try:
                    yield row_setting(row)
                except DamagedRow:
                    yield named(row)

    def _rows(self, table: str, key: str, columns: str) -> Iterator[Row]:
        """The readable rows, by ranges of their keys, which are their first columns. Some come twice."""
        query = f"SELECT {columns} FROM {table} NOT INDEXED WHERE {key} BETWEEN ? AND ? ORDER BY {key} "
        left_out = self._leaves.doubtful_keys(columns.count(",") + 1) if self._leaves else set[int]()
        ranges = deque([(0, _HIGHEST)])
        fruitless = 0
        while ranges and fruitless < _FRUITLESS:
            fruitless += 1
            first, last = ranges.popleft()
            for order in _ORDERS:
                with suppress(sqlite3.Error):
                    for row in self.connection.execute(query + order, (first, last)):
                        if row[0] not in left_out:
                            yield row
                        fruitless = 0
                        if order.startswith("ASC"):
                            first = max(first, row[0] + 1)
                        else:
                            last = min(last, row[0] - 1)
                    if "LIMIT" not in order:
                        break
                self.failed = True
            else:
                if first < last:
                    ranges += _divided(first, last)


class LostRows(DamagedTables):
    """Reads the rows of a damaged file on all pages, also those that the tables do not lead to."""

    def __init__(self, connection: sqlite3.Connection, leaves: Leaves) -> None:
        super().__init__(connection, None)
        self.leaves = leaves
        self.doubtful = False
        """Whether only doubtful rows are read, and not all others."""
        self._parts = {cell.key: cell for cell in leaves.cells(columns=2)}

    def _rows(self, table: str, key: str, columns: str) -> Iterator[Row]:
        for cell in self.leaves.cells(columns.count(",") + 1, doubtful=self.doubtful):
            if (row := self.leaves.row(cell)) is not None:
                yield row

    def _next_part(self, first: int, last: int) -> Row | None:
        cell = next((self._parts[key] for key in range(first, last + 1) if key in self._parts), None)
        return self.leaves.row(cell) if cell is not None else None


def pages_of(source: sqlite3.Connection, path: Path, work: Path) -> Path:
    """A file with all pages of an open damaged file, also those in its log."""
    if work.exists():
        source.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return work
    if not _has_log(path):
        return path
    with closing(sqlite3.connect(work)) as copy:
        source.backup(copy)
    return work


def _divided(first: int, last: int) -> Iterator[tuple[int, int]]:
    """Halve a small range. Divide a large one into growing parts, as rows are likely at its beginning."""
    if last - first < 1 << 12:
        middle = (first + last) // 2
        yield first, middle
        yield middle + 1, last
        return
    start, size = first, 256
    while start <= last:
        yield start, min(last, start + size - 1)
        start, size = start + size, size * 4
