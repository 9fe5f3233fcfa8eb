"""What is looked at when a file is loaded, so that nothing is gone without a message.

A flipped bit in a row is found by the row's checksum when it is read. Worse is one in what holds the rows
together: then rows vanish, and nobody reads them. So at each start:

* the file must be as long as SQLite says it is;
* a file of up to ``SMALL`` bytes is checked whole, by SQLite (``quick_check``: about 1 GB/s where the file is
  in memory, else as fast as the disk, so that longer files are not: a million jobs of 10 KiB take 10 s);
* all rows of all tables must be there: their number and the bytes kept are compared with the account, all
  numbers must be in order, and each row must be found by its number (SQLite finds a row by the keys between
  pages, which reading the rows in order does not look at);
* each index must have the entries that the rows say, compared by their sums.

What remains unseen in a long file is damage to the list of free pages, and to long bodies until they are
read.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gearflow.broker.storage import StoredJob
from gearflow.stores.sqlite.errors import damaged
from gearflow.stores.sqlite.rows import JOB_HEAD, SHORT_WORKLOAD, DamagedRow, row_job
from gearflow.stores.sqlite.schema import Metadata

SMALL: Final = 256 << 20
"""Bytes of a file that is checked whole."""

_LETTERS: Final = "count(*), total(number & 0xffffffff)"
_INDEXES: Final = {
    "records_number": ("1", "count(*), total(number & 0xffffffff), total(place)"),
    "records_expires": ("1", "count(*), total(CAST(expires AS INTEGER)), total(place)"),
    "records_dead": ("dead > 0", "count(*), total(dead), total(number & 0xffffffff), total(place)"),
    "records_letter": ("dead > 0", "count(*), total(number & 0xffffffff), total(place)"),
}


def check_file(path: Path, connection: sqlite3.Connection, fd: int) -> None:
    """The file as a whole; there is nothing in its log.

    Raises:
        StoreError: It is damaged.
        sqlite3.Error: It is damaged.
    """
    pages, page = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    length = os.fstat(fd).st_size
    if length != pages * page:
        raise damaged(path, f"it is {length} bytes long and should have {pages * page}")
    if length <= SMALL:
        result = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if result != "ok":
            raise damaged(path, result)


def check_records(path: Path, connection: sqlite3.Connection, account: Metadata) -> None:
    """That all results are there, and can be found.

    Raises:
        StoreError: They are not.
        sqlite3.Error: The file cannot be read.
    """
    query = "SELECT count(*), sum(kept), sum(token) FROM records NOT INDEXED"
    rows, kept, tokens = connection.execute(query).fetchone()
    if (rows, kept or 0) != (account.records, account.kept):
        raise damaged(
            path, f"it has {rows} results with {kept} bytes, not {account.records} with {account.kept}"
        )
    if (tokens or 0) != account.tokens:
        raise damaged(path, "the hashes of its uniques are not what was written")
    _check_found(path, connection, "records", "place")
    for index, (which, sums) in _INDEXES.items():
        by_rows, by_index = (
            connection.execute(f"SELECT {sums} FROM records {how} WHERE {which}").fetchone()
            for how in ("NOT INDEXED", f"INDEXED BY {index}")
        )
        if by_rows != by_index:
            raise damaged(path, f"the index {index} does not fit its table")


def checked_jobs(path: Path, connection: sqlite3.Connection, account: Metadata) -> Iterator[StoredJob]:
    """The jobs that are to run, one after another.

    Raises:
        StoreError: One is damaged, or missing.
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
    letters = connection.execute(
        "SELECT count(*) FROM records INDEXED BY records_letter WHERE dead > 0"
    ).fetchone()
    if (count, dead) != (account.jobs, letters[0]):
        raise damaged(
            path, f"{count} jobs, {dead} of them dead, are there, and not {account.jobs} and {letters[0]}"
        )


def _check_found(path: Path, connection: sqlite3.Connection, table: str, key: str) -> None:
    """That each row is found by its key; backwards, for SQLite takes a short cut to a key that comes next."""
    rows, found = connection.execute(
        f"SELECT (SELECT count(*) FROM {table} NOT INDEXED), count(*) "
        # without a LIMIT, SQLite would see that no order is needed to count
        f"FROM (SELECT {key} AS sought FROM {table} NOT INDEXED ORDER BY {key} DESC LIMIT -1) "
        f"CROSS JOIN {table} NOT INDEXED ON {table}.{key} = sought"
    ).fetchone()
    if rows != found:
        raise damaged(path, f"only {found} of {rows} rows of {table} are found by their numbers")
