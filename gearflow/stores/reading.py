"""What is in the tables: the questions that a store is asked."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any, Final, NamedTuple
from zlib import crc32

from gearflow.broker.store import Ended, StoredJob
from gearflow.stores.rows import (
    BODY,
    JOB_BODY_CRC,
    JOB_DEAD,
    JOB_HEAD,
    RECORD_BODY_CRC,
    RECORD_COLUMNS,
    SHORT_WORKLOAD,
    DamagedRow,
    Row,
    letter_token,
    part_ids,
    row_job,
    row_paused,
    row_record,
)


class Place(NamedTuple):
    """Where a result is kept, and what goes with it."""

    place: int
    number: int
    dead: int  # not 0: there is a letter, too
    token: int
    kept: int  # bytes


PLACE: Final = "place, number, dead, token, kept"


class Reader:
    """The tables of an open file. Everything may raise sqlite3.Error or DamagedRow."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.next_place = 1 + (connection.execute("SELECT max(place) FROM records").fetchone()[0] or 0)

    def job(self, number: int) -> StoredJob | None:
        row = self.connection.execute(
            f"SELECT {JOB_HEAD}, workload FROM jobs WHERE number = ?", (number,)
        ).fetchone()
        if row is None:
            return None
        return self.whole_job(row)

    def whole_job(self, row: Row) -> StoredJob:
        """The job in a row of ``JOB_HEAD`` and workload, with that."""
        job = row_job(row)
        if not isinstance(job.workload, int):
            return job
        return job._replace(
            workload=self._joined(job.number, job.workload, row[JOB_BODY_CRC], of_result=False)
        )

    def whole_record(self, row: Row) -> Ended:
        """What became of a job, with its body."""
        record = row_record(row)
        if not isinstance(row[BODY], int):
            return record
        return record._replace(
            body=self._joined(record.number, row[BODY], row[RECORD_BODY_CRC], of_result=True)
        )

    def ended(self, number: int) -> Ended | None:
        return next(self.records("WHERE number = ?", number), None)

    def dead(self, function: bytes | None, after: int, limit: int) -> list[Ended]:
        if function is None:
            return list(
                self.records(
                    "INDEXED BY records_letter WHERE dead > 0 AND number > ? ORDER BY number LIMIT ?",
                    after,
                    limit,
                )
            )
        return list(
            self.records(
                "INDEXED BY records_dead WHERE dead = ? AND dead > 0 AND number > ? AND function = ? "
                "ORDER BY number LIMIT ?",
                letter_token(function),
                after,
                function.decode("latin-1"),
                limit,
            )
        )

    def paused(self) -> tuple[bytes, ...]:
        """The functions that are paused."""
        row = self.connection.execute("SELECT functions, crc FROM paused WHERE id = 1").fetchone()
        if row is None:
            raise DamagedRow
        return row_paused(row)

    def held(self, number: int) -> tuple[StoredJob, int, int] | None:
        """A job without its long workload, whether it is dead, and the workload's checksum."""
        row = self.connection.execute(
            f"SELECT {JOB_HEAD}, {SHORT_WORKLOAD} FROM jobs WHERE number = ?", (number,)
        ).fetchone()
        return None if row is None else (row_job(row), row[JOB_DEAD], row[JOB_BODY_CRC])

    def places(self, number: int) -> list[Place]:
        found = self.connection.execute(f"SELECT {PLACE} FROM records WHERE number = ?", (number,))
        return [Place(*row) for row in found]

    def records(self, query: str, *values: Any) -> Iterator[Ended]:
        for row in self.connection.execute(f"SELECT {RECORD_COLUMNS} FROM records {query}", values):
            yield self.whole_record(row)

    def _joined(self, number: int, size: int, crc: int, *, of_result: bool) -> memoryview:
        whole = bytearray(size)
        end = 0
        for (piece,) in self.connection.execute(
            "SELECT bytes FROM parts WHERE id BETWEEN ? AND ? ORDER BY id",
            part_ids(number, of_result=of_result),
        ):
            start, end = end, end + len(piece)
            if end > size:
                raise DamagedRow
            whole[start:end] = piece
        if end != size or crc32(whole) != crc:
            raise DamagedRow
        return memoryview(whole).toreadonly()
