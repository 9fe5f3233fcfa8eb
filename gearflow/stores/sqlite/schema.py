"""The tables, their migrations, and the metadata row.

The tables of jobs and results come before all indexes. VACUUM rebuilds them in this order, so their root
pages stay the same, which ``recovery`` relies on. Tables of later versions may be anywhere.

A job costs as few writes as possible: ``jobs`` has no index but its key, the number. Results are kept in the
order in which jobs ended (``place``), and the first ones go first when there are too many. Indexes find them
by number and by expiry. For uniques see ``rows``. A dead letter is a row in both tables, with ``dead`` set in
each. Its workload stays where it is. A row of ``records`` without a number has several results: see
``packs``. For the table ``streams`` see ``streams``.

Since version 5 there is a second row of ``meta``, which has the number of rows in ``streams`` in the column
``records``, and the bytes of their parts in ``kept``. Since version 6 the table ``renumbered`` has the stores
from which jobs were copied, and there is always its first row. Since version 7 there are a table ``settings``
and a third row of ``meta``, which has the number of its rows in the column ``records``.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from gearflow.broker.storage import Renumbered
from gearflow.stores.sqlite.rows import (
    DamagedRow,
    paused_functions,
    paused_id,
    paused_row,
    renumbered_ranges,
    renumbered_rows,
)

APPLICATION_ID: Final = 0x47524657  # "GRFW"

PAGE: Final = 4096
"""Bytes of a page."""

_TABLES: Final = (
    """CREATE TABLE meta (
    id INTEGER PRIMARY KEY,  -- 1: there is one row
    name TEXT,               -- part of every handle
    reserved INTEGER,        -- numbers below this one may have been given to jobs
    copied INTEGER,          -- this is a copy: the original may have given more numbers
    groups INTEGER,          -- of changes, so far
    jobs INTEGER,            -- rows in jobs
    records INTEGER,         -- rows in records
    kept INTEGER,            -- the sum over records.kept
    tokens INTEGER,          -- the sum over records.token
    crc INTEGER
)""",
    """CREATE TABLE jobs (
    number INTEGER PRIMARY KEY,
    function TEXT,
    "unique" TEXT,
    priority INTEGER,
    submitted REAL,
    due REAL,
    reducer,                 -- 0: none
    options TEXT,
    attempt INTEGER,
    deaths INTEGER,
    dead INTEGER,            -- 1: a dead letter, not to be run
    body_crc INTEGER,
    crc INTEGER,
    workload BLOB            -- an INTEGER: its length; it is in parts
)""",
    """CREATE TABLE records (
    place INTEGER PRIMARY KEY,
    number INTEGER,
    function TEXT,
    "unique" TEXT,
    outcome INTEGER,
    submitted REAL,
    started REAL,
    ended REAL,
    attempt INTEGER,
    deaths INTEGER,
    worker TEXT,
    notes TEXT,
    expires REAL,
    body_crc INTEGER,
    crc INTEGER,
    dead INTEGER,            -- a hash of the function of a dead letter; 0: it is none
    token INTEGER,           -- a hash of function and unique; 0: no unique
    kept INTEGER,            -- bytes, with the dead letter's workload
    body BLOB                -- an INTEGER: its length; it is in parts
)""",
    "CREATE TABLE parts (id INTEGER PRIMARY KEY, bytes BLOB)",  # id: number << 9 | of a result << 8 | place
    "CREATE UNIQUE INDEX records_number ON records (number)",
    "CREATE INDEX records_expires ON records (expires)",
    "CREATE INDEX records_dead ON records (dead, number) WHERE dead > 0",
    "CREATE INDEX records_letter ON records (number) WHERE dead > 0",
)

# Since version 3 there is a row for each function, with its name alone. Row 1 has their total.
_PAUSED: Final = """CREATE TABLE paused (
    id INTEGER PRIMARY KEY,  -- 1: there is one row
    functions TEXT,          -- their names, JSON
    crc INTEGER
)"""


_STREAMS: Final = (
    """CREATE TABLE streams (
    id INTEGER PRIMARY KEY,
    number INTEGER,          -- of the job
    life INTEGER,            -- grows when the parts begin again
    last INTEGER,            -- the position of the last part
    count INTEGER,           -- of parts; 0: a mark
    size INTEGER,            -- bytes of the parts
    run INTEGER,             -- of the job
    crc INTEGER,
    parts BLOB
)""",
    "CREATE INDEX streams_number ON streams (number, life, last, count, size)",
)


_RENUMBERED: Final = """CREATE TABLE renumbered (
    id INTEGER PRIMARY KEY,  -- 0: "add" is the number of the other rows
    name TEXT,               -- of the store from which jobs were copied
    first INTEGER,           -- their numbers there
    last INTEGER,
    "add" INTEGER,           -- to these, to get the numbers here
    crc INTEGER
)"""

_SETTINGS: Final = """CREATE TABLE settings (
    id INTEGER PRIMARY KEY,  -- a hash of the kind and the name
    kind TEXT,               -- schedule, limit or function
    name TEXT,
    value TEXT,              -- JSON
    crc INTEGER
)"""


def _create(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    for statement in _TABLES:
        connection.execute(statement)
    Metadata(os.urandom(4).hex().encode()).insert(connection)


def _add_paused(connection: sqlite3.Connection) -> None:
    """Add the paused functions. There is always one row, so that its loss is noticed."""
    connection.execute(_PAUSED)
    connection.execute("INSERT INTO paused (id, functions, crc) VALUES (1, ?, ?)", paused_row(()))


def _add_row_for_each_paused(connection: sqlite3.Connection) -> None:
    """Give each paused function a row of its own. The first row has their total.

    If the row is damaged it stays as it is, and loading the store says so.
    """
    try:
        names = paused_functions(connection.execute("SELECT id, functions, crc FROM paused").fetchall())
    except DamagedRow:
        return
    rows = [(paused_id(name), *paused_row((name,))) for name in names]
    connection.executemany("INSERT INTO paused (id, functions, crc) VALUES (?, ?, ?)", rows)
    total = paused_row((len(rows), sum(crc for _, _, crc in rows)))
    connection.execute("UPDATE paused SET functions = ?, crc = ? WHERE id = 1", total)


def _allow_packs(connection: sqlite3.Connection) -> None:
    """Since version 4 a row of ``records`` may be a pack. Only the number of the version changes."""


def _add_streams(connection: sqlite3.Connection) -> None:
    for statement in _STREAMS:
        connection.execute(statement)
    connection.execute(_UPDATE_STREAMS, _streams_row(0, 0))


def _add_renumbered(connection: sqlite3.Connection) -> None:
    connection.execute(_RENUMBERED)
    write_renumbered(connection, ())


def _add_settings(connection: sqlite3.Connection) -> None:
    connection.execute(_SETTINGS)
    connection.execute(_UPDATE_SETTINGS, _settings_row(0))


MIGRATIONS: list[Callable[[sqlite3.Connection], None]] = [
    _create,
    _add_paused,
    _add_row_for_each_paused,
    _allow_packs,
    _add_streams,
    _add_renumbered,
    _add_settings,
]
"""The n-th migrates a file of version n to version n + 1. A new file has version 0."""

WITH_STREAMS: Final = 5
"""The first version with the table ``streams``."""

WITH_RENUMBERED: Final = 6
"""The first version with the table ``renumbered``."""

WITH_SETTINGS: Final = 7
"""The first version with the table ``settings``."""


def version() -> int:
    """The version of the files that this gearflow writes."""
    return len(MIGRATIONS)


def version_of(connection: sqlite3.Connection) -> int:
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return found


def migrate(connection: sqlite3.Connection, to: int | None = None) -> None:
    """Migrate a file to this version, or to an earlier one. Each step is one transaction."""
    for number in range(version_of(connection), version() if to is None else to):
        connection.execute("BEGIN IMMEDIATE")
        try:
            MIGRATIONS[number](connection)
            connection.execute(f"PRAGMA user_version = {number + 1}")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")


def tables_of(connection: sqlite3.Connection) -> list[tuple[str, str, str]]:
    """The tables and indexes of a file."""
    return connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()


def expected_tables(of: int | None = None) -> list[tuple[str, str, str]]:
    """The tables and indexes of a file of this version, or of an earlier one."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        migrate(connection, of)
        return tables_of(connection)
    finally:
        connection.close()


def write_renumbered(connection: sqlite3.Connection, ranges: Sequence[Renumbered]) -> None:
    """Replace what the table ``renumbered`` has."""
    connection.execute("DELETE FROM renumbered")
    connection.executemany("INSERT INTO renumbered VALUES (?, ?, ?, ?, ?, ?)", renumbered_rows(ranges))


def read_renumbered(connection: sqlite3.Connection) -> tuple[Renumbered, ...]:
    """What the table ``renumbered`` has. Raises DamagedRow."""
    if version_of(connection) < WITH_RENUMBERED:
        return ()
    return renumbered_ranges(connection.execute("SELECT * FROM renumbered ORDER BY id").fetchall())


_COLUMNS: Final = "name, reserved, copied, groups, jobs, records, kept, tokens, crc"


class DamagedMetadata(Exception):
    """The metadata is missing, or is not what was written."""


_UPDATE: Final = (
    "UPDATE meta SET name = ?, reserved = ?, copied = ?, groups = ?, jobs = ?, records = ?, kept = ?, "
    "tokens = ?, crc = ? WHERE id = 1"
)
_UPDATE_STREAMS: Final = "INSERT OR REPLACE INTO meta (id, records, kept, crc) VALUES (2, ?, ?, ?)"
_UPDATE_SETTINGS: Final = "INSERT OR REPLACE INTO meta (id, records, crc) VALUES (3, ?, ?)"


@dataclass(slots=True)
class Metadata:
    """The row of the table ``meta``. Its owner changes it together with the tables."""

    name: bytes
    reserved: int = 1  # numbers below this one may have been given to jobs
    copied: int = 0  # 1: this is a copy. The original may have given more numbers
    groups: int = 0  # of changes, so far
    jobs: int = 0  # rows
    records: int = 0  # results
    kept: int = 0  # bytes of results
    tokens: int = 0  # the sum of those of the results
    streams: int = 0  # rows
    streamed: int = 0  # bytes of the parts in them
    settings: int = 0  # rows
    _noted: tuple[int, int] = 0, 0  # what the file has of rows and bytes of streams
    _noted_settings: int = 0  # what the file has of these

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> Metadata:
        """Read the metadata of a file.

        Raises:
            DamagedMetadata: It is missing or damaged.
            sqlite3.Error: The file cannot be read.
        """
        row = connection.execute(f"SELECT {_COLUMNS} FROM meta WHERE id = 1").fetchone()
        if row is None:
            raise DamagedMetadata
        try:
            metadata = cls(row[0].encode("ascii"), *row[1:-1])
            if metadata._row() != row:
                raise DamagedMetadata
            second = connection.execute("SELECT records, kept, crc FROM meta WHERE id = 2").fetchone()
            if second is not None:  # it is missing before version 5
                metadata.streams, metadata.streamed = metadata._noted = second[:2]
                if _streams_row(*second[:2]) != second:
                    raise DamagedMetadata
            third = connection.execute("SELECT records, crc FROM meta WHERE id = 3").fetchone()
            if third is not None:  # it is missing before version 7
                metadata.settings = metadata._noted_settings = third[0]
                if _settings_row(third[0]) != third:
                    raise DamagedMetadata
        except (AttributeError, TypeError, ValueError) as error:
            raise DamagedMetadata from error
        return metadata

    def copy(self) -> Metadata:
        fields = self.reserved, self.copied, self.groups, self.jobs, self.records, self.kept, self.tokens
        # seven times faster than dataclasses.replace
        noted = self._noted, self._noted_settings
        return Metadata(self.name, *fields, self.streams, self.streamed, self.settings, *noted)

    def insert(self, connection: sqlite3.Connection) -> None:
        connection.execute(
            f"INSERT OR REPLACE INTO meta (id, {_COLUMNS}) VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?)", self._row()
        )

    def update(self, connection: sqlite3.Connection) -> None:
        connection.execute(_UPDATE, self._row())
        if (now := (self.streams, self.streamed)) != self._noted:
            connection.execute(_UPDATE_STREAMS, _streams_row(*now))
            self._noted = now
        if self.settings != self._noted_settings:
            connection.execute(_UPDATE_SETTINGS, _settings_row(self.settings))
            self._noted_settings = self.settings

    def _row(self) -> tuple[str, int, int, int, int, int, int, int, int]:
        fields = self.reserved, self.copied, self.groups, self.jobs, self.records, self.kept, self.tokens
        return (self.name.decode(), *fields, crc32(b"%b %d %d %d %d %d %d %d" % (self.name, *fields)))


def _streams_row(streams: int, streamed: int) -> tuple[int, int, int]:
    return streams, streamed, crc32(b"%d %d" % (streams, streamed))


def _settings_row(settings: int) -> tuple[int, int]:
    return settings, crc32(b"settings %d" % settings)
