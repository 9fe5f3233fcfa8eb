"""Checks of a file when it is loaded, so that nothing is lost without a message.

A row's checksum finds a flipped bit in the row. Damage to the pages that link the rows is worse, because rows
then vanish and nobody reads them. So each start checks that

* the file is as long as SQLite says;
* a file of up to ``Tuning.full_check`` bytes passes SQLite's ``quick_check``;
* all rows of all tables are there. Their number and the kept bytes are compared with the metadata, the
  numbers must be in order, and each row must be found by its number (SQLite then uses the keys between pages,
  which it does not when it reads rows in order);
* each index has the entries of the rows, compared by sums;
* the parts of each body are together as long as its row says;
* all rows of streams are there, by their number and bytes;
* all settings are there, by their number, and each is what was written.

In a long file this does not see damage to the list of free pages, or to long bodies until they are read.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gearflow.broker.storage import Setting, StoredJob
from gearflow.stores.sqlite import schema
from gearflow.stores.sqlite.errors import damaged
from gearflow.stores.sqlite.packs import RESULTS
from gearflow.stores.sqlite.rows import JOB_HEAD, SHORT_WORKLOAD, DamagedRow, row_job
from gearflow.stores.sqlite.schema import Metadata
from gearflow.stores.sqlite.settings import SETTING_COLUMNS, named, row_setting
from gearflow.stores.sqlite.tuning import Tuning

_INDEXES: Final = {
    "records_number": ("1", "count(*), total(number & 0xffffffff), total(place)"),
    "records_expires": ("1", "count(*), total(CAST(expires AS INTEGER)), total(place)"),
    "records_dead": ("dead > 0", "count(*), total(dead), total(number & 0xffffffff), total(place)"),
    "records_letter": ("dead > 0", "count(*), total(number & 0xffffffff), total(place)"),
}

_STREAM_SUMS: Final = "count(*), " + ", ".join(
    f"total({column})" for column in ("number & 0xffffffff", "life", "last", "count", "size", "id")
)


def check_file(path: Path, connection: sqlite3.Connection, fd: int, tuning: Tuning) -> None:
    """Check the file as a whole. Its log must be empty.

    Raises:
        StoreError: The file is damaged.
        sqlite3.Error: The file is damaged.
    """
    pages, page = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    length = os.fstat(fd).st_size
    if length != pages * page:
        raise damaged(path, f"it is {length} bytes long and should have {pages * page}")
    if length <= tuning.full_check:
        result = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if result != "ok":
            raise damaged(path, result.splitlines()[-1])  # below the name of the database


def check_records(path: Path, connection: sqlite3.Connection, metadata: Metadata) -> None:
    """Check that all results are there and can be found.

    Raises:
        StoreError: Some are missing or cannot be found.
        sqlite3.Error: The file cannot be read.
    """
    query = f"SELECT sum({RESULTS}), sum(kept), sum(token) FROM records NOT INDEXED"
    rows, kept, tokens = connection.execute(query).fetchone()
    if (rows or 0, kept or 0) != (metadata.records, metadata.kept):
        raise damaged(
            path, f"it has {rows} results with {kept} bytes, not {metadata.records} with {metadata.kept}"
        )
    if (tokens or 0) != metadata.tokens:
        raise damaged(path, "the hashes of its uniques are not what was written")
    _check_found(path, connection, "records", "place")
    for index, (which, sums) in _INDEXES.items():
        _check_index(path, connection, "records", index, which, sums)
    _check_parts(path, connection)
    if schema.version_of(connection) >= schema.WITH_STREAMS:  # this may be a copy of an earlier one
        _check_streams(path, connection, metadata)


def checked_jobs(path: Path, connection: sqlite3.Connection, metadata: Metadata) -> Iterator[StoredJob]:
    """Yield the jobs that are to run.

    Raises:
        StoreError: A job is damaged or missing.
        sqlite3.Error: The file cannot be read.
    """
    _check_found(path, connection, "jobs", "number")
    last, count, dead = -1, 0, 0
    for row in connection.execute(f"SELECT {JOB_HEAD}, {SHORT_WORKLOAD} FROM jobs ORDER BY number"):
        try:
            job = row_job(row)
        except DamagedRow:
            raise damaged(path, f"job {row[0]} is not what was written") from None
        if row[0] <= last:
            raise damaged(path, f"job {row[0]} comes after job {last}")
        last = row[0]
        count += 1
        if row[10]:
            dead += 1
        else:
            yield job
    letters = dead_letters(connection)
    if (count, dead) != (metadata.jobs, letters):
        raise damaged(
            path, f"{count} jobs, {dead} of them dead, are there, and not {metadata.jobs} and {letters}"
        )


def dead_letters(connection: sqlite3.Connection) -> int:
    """The number of dead letters. Raises sqlite3.Error."""
    query = "SELECT count(*) FROM records INDEXED BY records_letter WHERE dead > 0"
    count: int = connection.execute(query).fetchone()[0]
    return count


def checked_settings(path: Path, connection: sqlite3.Connection, metadata: Metadata) -> tuple[Setting, ...]:
    """The settings.

    Raises:
        StoreError: One is damaged or missing.
        sqlite3.Error: The file cannot be read.
    """
    if schema.version_of(connection) < schema.WITH_SETTINGS:  # this may be a copy of an earlier one
        return ()
    settings: list[Setting] = []
    for row in connection.execute(f"SELECT {SETTING_COLUMNS} FROM settings ORDER BY id"):
        try:
            settings.append(row_setting(row))
        except DamagedRow:
            raise damaged(path, f"the setting {named(row)} is not what was written") from None
    if len(settings) != metadata.settings:
        raise damaged(path, f"{len(settings)} settings are there, and not {metadata.settings}")
    _check_found(path, connection, "settings", "id")
    return tuple(settings)


def _check_index(
    path: Path, connection: sqlite3.Connection, table: str, index: str, which: str, sums: str
) -> None:
    """Check that an index has the entries of its table."""
    by_rows, by_index = (
        connection.execute(f"SELECT {sums} FROM {table} {how} WHERE {which}").fetchone()
        for how in ("NOT INDEXED", f"INDEXED BY {index}")
    )
    if by_rows != by_index:
        raise damaged(path, f"the index {index} does not fit its table")


def _check_streams(path: Path, connection: sqlite3.Connection, metadata: Metadata) -> None:
    """Check that all parts of streams are there."""
    query = "SELECT count(*), ifnull(sum(size), 0) FROM streams NOT INDEXED"
    rows, size = connection.execute(query).fetchone()
    if (rows, size) != (metadata.streams, metadata.streamed):
        expected = f"{metadata.streams} with {metadata.streamed}"
        raise damaged(path, f"it has {rows} rows of streams with {size} bytes, not {expected}")
    _check_found(path, connection, "streams", "id")
    _check_index(path, connection, "streams", "streams_number", "1", _STREAM_SUMS)


def _check_found(path: Path, connection: sqlite3.Connection, table: str, key: str) -> None:
    """Check that each row is found by its key. Backwards, because SQLite has a shortcut to the next key."""
    rows, found = connection.execute(
        f"SELECT (SELECT count(*) FROM {table} NOT INDEXED), count(*) "
        # without a LIMIT, SQLite would see that no order is needed to count
        f"FROM (SELECT {key} AS sought FROM {table} NOT INDEXED ORDER BY {key} DESC LIMIT -1) "
        f"CROSS JOIN {table} NOT INDEXED ON {table}.{key} = sought"
    ).fetchone()
    if rows != found:
        raise damaged(path, f"only {found} of {rows} rows of {table} are found by their numbers")


def _check_parts(path: Path, connection: sqlite3.Connection) -> None:
    """Check that no part of a body is missing. Parts that belong to no row are no damage."""
    for of_result, (table, column) in enumerate((("jobs", "workload"), ("records", "body"))):
        row = connection.execute(
            "SELECT number FROM (SELECT id >> 9 AS number, sum(length(bytes)) AS size FROM parts "
            f"WHERE id >> 8 & 1 = {of_result} GROUP BY 1) JOIN {table} USING (number) "
            f"WHERE typeof({column}) = 'integer' AND {column} != size LIMIT 1"
        ).fetchone()
        if row is not None:
            raise damaged(path, f"a part of the body of job {row[0]} is missing")
