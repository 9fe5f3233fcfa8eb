"""Reads the tables. Everything may raise sqlite3.Error or DamagedRow."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Generator, Iterator
from typing import Final, NamedTuple, TypeVar, cast
from zlib import crc32

from gearflow.broker.parser import mapped
from gearflow.broker.storage import JobRecord, StoredJob
from gearflow.stores.sqlite.packs import RESULTS
from gearflow.stores.sqlite.rows import (
    JOB_BODY_CRC,
    JOB_DEAD,
    JOB_HEAD,
    RECORD_BODY_CRC,
    RECORD_COLUMNS,
    SHORT_WORKLOAD,
    DamagedRow,
    Row,
    body_key,
    dead_letter_token,
    part_ids,
    paused_functions,
    row_job,
    row_record,
)


class Place(NamedTuple):
    """Where a result is kept, or a pack, and what belongs to it."""

    place: int
    number: int
    dead: int  # not 0: there is a letter, too
    token: int  # or the sum of them
    kept: int  # bytes
    results: int  # more than one only in a pack
    last_expires: float | None  # of a pack


PLACE: Final = (
    f"place, ifnull(number, 0), dead, token, kept, {RESULTS}, CASE WHEN number IS NULL THEN ended END"
)


class Reader:
    """The tables of an open file. Everything may raise sqlite3.Error or DamagedRow."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def job(self, number: int) -> StoredJob | None:
        return _at_once(self.fetch(number))

    def fetch(self, number: int) -> Generator[None, None, StoredJob | None]:
        """Read a job in steps. None if it is gone."""
        row = self.connection.execute(
            f"SELECT {JOB_HEAD}, workload FROM jobs WHERE number = ?", (number,)
        ).fetchone()
        if row is None:
            return None
        try:
            return (yield from self._whole_job(row))
        except DamagedRow:
            now = self.connection.execute(
                f"SELECT {JOB_HEAD} FROM jobs WHERE number = ?", (number,)
            ).fetchone()
            if now == row[:-1]:
                raise
            return (yield from self.fetch(number))  # removed or edited meanwhile

    def whole_job(self, row: Row) -> StoredJob:
        """The job in a row of ``JOB_HEAD`` and workload, with its whole workload."""
        return _at_once(self._whole_job(row))

    def _whole_job(self, row: Row) -> Generator[None, None, StoredJob]:
        job = row_job(row)
        if not isinstance(job.workload, int):
            return job
        key = body_key(job.number, of_result=False)
        return job._replace(workload=(yield from self._joined(key, job.workload, row[JOB_BODY_CRC])))

    def whole_record(self, row: Row) -> JobRecord:
        """The record in a row of ``RECORD_COLUMNS``, with its whole body."""
        return _at_once(self.whole_record_in_steps(row))

    def whole_record_in_steps(self, row: Row) -> Generator[None, None, JobRecord]:
        record = row_record(row)
        if not isinstance(record.body, int):
            return record
        key = body_key(record.number, of_result=True)
        return record._replace(body=(yield from self._joined(key, record.body, row[RECORD_BODY_CRC])))

    def record_row_at(self, key: str, value: int) -> Row | None:
        found = self.connection.execute(f"SELECT {RECORD_COLUMNS} FROM records WHERE {key} = ?", (value,))
        return next(iter(found.fetchall()), None)

    def names(self, table: str, key: str, value: int) -> tuple[int, bytes, bytes] | None:
        """The number, function and unique in a damaged row, as far as they can be read."""
        if table == "streams":  # which has only the number
            return self.names("jobs", key, value) or self.names("records", key, value)
        row = self.connection.execute(
            f'SELECT number, CAST(function AS BLOB), CAST("unique" AS BLOB) FROM {table} WHERE {key} = ?',
            (value,),
        ).fetchone()
        if row is None or not isinstance(row[0], int):
            return None
        function, unique = (
            bytes(name or b"").decode(errors="replace").encode("latin-1", "replace") for name in row[1:]
        )
        return row[0], function, unique

    def dead(self, function: bytes | None, after: int, descending: bool = False) -> Iterator[tuple[int, int]]:
        """The numbers and places of dead letters, from the index alone. A few may be of other functions."""
        range_ = "number < ? ORDER BY number DESC" if descending else "number > ? ORDER BY number"
        which, values = "records_letter WHERE", [after or sys.maxsize if descending else after]
        if function is not None:
            which, values = "records_dead WHERE dead = ? AND", [dead_letter_token(function), *values]
        return self.connection.execute(
            f"SELECT number, place FROM records INDEXED BY {which} dead > 0 AND {range_}", values
        )

    def paused(self) -> tuple[bytes, ...]:
        """The functions that are paused."""
        rows = self.connection.execute("SELECT id, functions, crc FROM paused ORDER BY id").fetchall()
        return paused_functions(rows)

    def held(self, number: int) -> tuple[StoredJob, int, int] | None:
        """A job without its long workload, whether it is dead, and the workload's checksum."""
        row = self.connection.execute(
            f"SELECT {JOB_HEAD}, {SHORT_WORKLOAD} FROM jobs WHERE number = ?", (number,)
        ).fetchone()
        return None if row is None else (row_job(row), row[JOB_DEAD], row[JOB_BODY_CRC])

    def places(self, number: int) -> list[Place]:
        found = self.connection.execute(f"SELECT {PLACE} FROM records WHERE number = ?", (number,))
        return [Place(*row) for row in found]

    def _joined(self, key: int, size: int, crc: int) -> Generator[None, None, memoryview]:
        """The body of a key, whose parts are read one by one."""
        whole = mapped(size)
        first, last = part_ids(key)
        end = found = 0
        while (part := self._next_part(first, last)) is not None:
            first, piece = part[0] + 1, part[1]
            start, end = end, end + len(piece)
            if end > size:
                raise DamagedRow
            whole[start:end] = piece
            found = crc32(piece, found)
            yield
        if end != size or found != crc:
            raise DamagedRow
        return whole.toreadonly()

    def _next_part(self, first: int, last: int) -> Row | None:
        """The first part with a key in this range, after its key."""
        query = "SELECT id, bytes FROM parts WHERE id BETWEEN ? AND ? ORDER BY id LIMIT 1"
        return next(iter(self.connection.execute(query, (first, last)).fetchall()), None)


T = TypeVar("T")


def _at_once(steps: Generator[None, None, T]) -> T:
    """Do all steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(T, end.value)
