"""Reads and changes the tables. The caller begins and ends the transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeVar, cast
from zlib import crc32

from gearflow.broker.parser import Body, mapped
from gearflow.broker.storage import (
    Change,
    Forgotten,
    JobRecord,
    Paused,
    Rescheduled,
    Reserved,
    Revived,
    StoredJob,
)
from gearflow.errors import StoreError
from gearflow.stores.sqlite.rows import (
    JOB_BODY_CRC,
    JOB_DEAD,
    JOB_HEAD,
    KEPT,
    MOST_PARTS,
    RECORD_BODY_CRC,
    RECORD_COLUMNS,
    SHORT_WORKLOAD,
    TOKEN,
    DamagedRow,
    Row,
    Uniques,
    body_key,
    dead_letter_token,
    job_row,
    kept_by,
    part_ids,
    paused_functions,
    paused_id,
    paused_row,
    record_row,
    row_job,
    row_paused,
    row_record,
    token_of,
)
from gearflow.stores.sqlite.schema import Metadata
from gearflow.stores.sqlite.tuning import Tuning


class Place(NamedTuple):
    """Where a result is kept, and what belongs to it."""

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
            if self.held(number) is None:  # removed meanwhile
                return None
            raise

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
        return _at_once(self._whole_record(row))

    def _whole_record(self, row: Row) -> Generator[None, None, JobRecord]:
        record = row_record(row)
        if not isinstance(record.body, int):
            return record
        key = body_key(record.number, of_result=True)
        return record._replace(body=(yield from self._joined(key, record.body, row[RECORD_BODY_CRC])))

    def record(self, key: str, value: int) -> JobRecord | None:
        """The result with this ``number``, or at this ``place``. A body in parts is its length."""
        row = self._record_row_at(key, value)
        return None if row is None else row_record(row)

    def fetch_record(self, number: int) -> Generator[None, None, JobRecord | None]:
        """Read a result in steps. None if it is gone. If another has taken its number, that one is read."""
        while (row := self._record_row_at("number", number)) is not None:
            try:
                return (yield from self._whole_record(row))
            except DamagedRow:
                now = self._record_row_at("number", number)
                if now is not None and now[0] == row[0]:  # at the same place
                    raise
        return None

    def _record_row_at(self, key: str, value: int) -> Row | None:
        found = self.connection.execute(f"SELECT {RECORD_COLUMNS} FROM records WHERE {key} = ?", (value,))
        return next(iter(found.fetchall()), None)

    def names(self, table: str, key: str, value: int) -> tuple[int, bytes, bytes] | None:
        """The number, function and unique in a damaged row, as far as they can be read."""
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

    def dead(self, function: bytes | None, after: int) -> Iterator[tuple[int, int]]:
        """The numbers and places of dead letters, from the index alone. A few may be of other functions."""
        which, values = "records_letter WHERE", [after]
        if function is not None:
            which, values = "records_dead WHERE dead = ? AND", [dead_letter_token(function), after]
        return self.connection.execute(
            f"SELECT number, place FROM records INDEXED BY {which} dead > 0 AND number > ? ORDER BY number",
            values,
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


_INSERT_JOB: Final = f"INSERT INTO jobs ({JOB_HEAD}, workload) VALUES ({', '.join('?' * 14)})"
_UPDATE_JOB: Final = f"UPDATE jobs SET ({JOB_HEAD}) = ({', '.join('?' * 13)}) WHERE number = ?"
_INSERT_RECORD: Final = f"INSERT INTO records ({RECORD_COLUMNS}) VALUES ({', '.join('?' * 19)})"


class Tables(Reader):
    """The tables of an open file, and their metadata. All methods may raise sqlite3.Error or DamagedRow."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        metadata: Metadata,
        keep_bytes: int | None = None,
        part: int = Tuning().part,
    ) -> None:
        """A result that is larger than ``keep_bytes`` is not kept, because all others would have to go."""
        super().__init__(connection)
        self._next_place = 1 + (connection.execute("SELECT max(place) FROM records").fetchone()[0] or 0)
        self.metadata = metadata
        self._keep_bytes = keep_bytes
        self._part = part
        keys = [key for (key,) in connection.execute("SELECT DISTINCT id >> 8 FROM parts")]
        self._in_parts = {key >> 1 for key in keys if not key & 1}
        """Numbers of jobs whose workloads lie in parts. Some of them are gone."""
        self.loose = {key for key in keys if self._size_of(key) is None}
        """Keys of bodies in parts whose jobs or results may be gone. A rollback can bring them back."""
        self.ahead: dict[int, int] = {}
        """Checksums of the bodies that are written ahead of their jobs or results, by key."""
        self._uniques = Uniques()

    def read_uniques(self) -> None:
        """Build the index for ``latest``."""
        self._uniques = Uniques()
        for place, token in self.connection.execute("SELECT place, token FROM records ORDER BY place"):
            if token:
                self._uniques.add(token, place)

    def find(self, function: bytes, unique: bytes) -> Iterator[int]:
        """The places where the latest result of a unique may be, the youngest first."""
        return self._uniques.find(token_of(function, unique))

    def apply(self, changes: Sequence[Change]) -> None:
        """Apply changes in order. Raises sqlite3.IntegrityError if a number is there already."""
        kinds: dict[type[Change], list[Any]] = {}
        numbers: set[int | bytes] = set()  # of jobs; others name what they change as well
        for change in changes:
            if change[0] in numbers:
                self._apply_kinds(kinds)
                kinds.clear()
                numbers.clear()
            numbers.add(change[0])
            if (kind := change.__class__) in kinds:
                kinds[kind].append(change)
            else:
                kinds[kind] = [change]
        self._apply_kinds(kinds)

    def apply_in_place_of_others(self, changes: Sequence[Change]) -> None:
        """Apply changes one by one. Whatever the file has under the number of a job or result is removed."""
        for change in changes:
            if isinstance(change, (StoredJob, JobRecord)):
                self.remove(place._replace(dead=0) for place in self.places(change.number))
            if isinstance(change, StoredJob) and not isinstance(change.workload, int):
                self._delete_jobs([change.number])
            self._apply_kinds({type(change): [change]})

    def over(self, now: float, keep_bytes: int | None, limit: int) -> list[Place]:
        """The first expired results, then the oldest results beyond ``keep_bytes``."""
        query = f"SELECT {PLACE} FROM records"
        found = [
            Place(*row)
            for row in self.connection.execute(
                f"{query} WHERE expires <= ? ORDER BY expires LIMIT ?", (now, limit)
            )
        ]
        kept = self.metadata.kept - sum(place.kept for place in found)
        if keep_bytes is not None and kept > keep_bytes and len(found) < limit:
            expired = set(found)
            for row in self.connection.execute(f"{query} ORDER BY place LIMIT ?", (limit,)):
                if kept <= keep_bytes or len(found) == limit:
                    break
                if (place := Place(*row)) not in expired:
                    found.append(place)
                    kept -= place.kept
        return found

    def remove(self, places: Iterable[Place]) -> None:
        """Remove results, with their dead letters."""
        places = list(places)
        self.connection.executemany("DELETE FROM records WHERE place = ?", [place[:1] for place in places])
        self.metadata.records -= len(places)
        for place in places:
            self.metadata.kept -= place.kept
            self.metadata.tokens -= place.token
            if place.dead:
                self._delete_jobs([place.number])
            if place.kept > self._part:
                self.loose.add(body_key(place.number, of_result=True))
        if (first := self.connection.execute("SELECT min(place) FROM records").fetchone()[0]) is not None:
            self._uniques.forget_before(first)

    def _apply_kinds(self, kinds: dict[type[Change], list[Any]]) -> None:
        """Apply changes by kind. No two are of the same job."""
        for kind, changes in kinds.items():
            if kind is StoredJob:
                self._store(changes)
            elif kind is JobRecord:
                self._end(changes)
            elif kind is Forgotten:
                self._forget(changes)
            elif kind is Rescheduled:
                self._reschedule(changes)
            elif kind is Revived:
                self._revive(changes)
            elif kind is Reserved:
                self.metadata.reserved = max(self.metadata.reserved, *(change.below for change in changes))
            elif kind is Paused:
                for change in changes:
                    self.pause(change)

    def insert_jobs(self, jobs: Sequence[StoredJob], dead: int = 0) -> None:
        """Insert jobs with their workloads."""
        self.connection.executemany(_INSERT_JOB, [self._job_row(job, dead) for job in jobs])
        self.metadata.jobs += len(jobs)

    def _job_row(self, job: StoredJob, dead: int) -> Row:
        workload = job.workload
        if isinstance(workload, int) or len(workload) <= self._part:
            return job_row(job, dead)
        self._in_parts.add(job.number)
        crc = self._insert_parts(body_key(job.number, of_result=False), workload)
        return job_row(job._replace(workload=len(workload)), dead, crc)

    def insert_records(self, records: Sequence[JobRecord]) -> None:
        """Insert results, after their dead letters."""
        place = self._next_place
        new = [self._record_row(record, place + more) for more, record in enumerate(records)]
        self._next_place += len(new)
        self.connection.executemany(_INSERT_RECORD, new)
        self.metadata.records += len(new)
        for row in new:
            self.metadata.kept += row[KEPT]
            if token := row[TOKEN]:
                self.metadata.tokens += token
                self._uniques.add(token, row[0])

    def _record_row(self, record: JobRecord, place: int) -> Row:
        body = record.body
        if isinstance(body, int) or len(body) <= self._part:
            return record_row(record, place)
        crc = self._insert_parts(body_key(record.number, of_result=True), body)
        return record_row(record._replace(body=len(body)), place, crc)

    def pause(self, change: Paused) -> None:
        """Have a function paused, or not."""
        key, row = paused_id(change.function), paused_row((change.function,))
        if change.paused:
            query = "INSERT OR IGNORE INTO paused (id, functions, crc) VALUES (?, ?, ?)"
            changed = self.connection.execute(query, (key, *row)).rowcount
        else:
            query = "DELETE FROM paused WHERE id = ? AND functions = ? AND crc = ?"
            changed = -self.connection.execute(query, (key, *row)).rowcount
        if changed:
            first = self.connection.execute("SELECT functions, crc FROM paused WHERE id = 1").fetchone()
            if first is None:
                raise DamagedRow
            count, crcs = map(int, row_paused(first))
            total = paused_row((count + changed, crcs + changed * row[1]))
            self.connection.execute("UPDATE paused SET functions = ?, crc = ? WHERE id = 1", total)

    def _store(self, jobs: Sequence[StoredJob], dead: int = 0) -> None:
        self.insert_jobs([job for job in jobs if not isinstance(job.workload, int)], dead)
        for job in jobs:
            if isinstance(job.workload, int):
                self._rewrite(job, dead)

    def _end(self, records: Sequence[JobRecord]) -> None:
        if self._keep_bytes is not None:
            records = self._without_too_large(records, self._keep_bytes)
        letters = [record.letter for record in records if record.letter is not None]
        self._delete_jobs(
            [
                record.number
                for record in records
                if record.letter is None or not isinstance(record.letter.workload, int)
            ]
        )
        if letters:
            self._store(letters, dead=1)
        self.insert_records(records)

    def _without_too_large(self, records: Sequence[JobRecord], most: int) -> list[JobRecord]:
        """The records that may be kept. The jobs of the others are removed."""
        self._delete_jobs([record.number for record in records if kept_by(record) > most])
        return [record for record in records if kept_by(record) <= most]

    def is_too_large(self, change: StoredJob | JobRecord) -> bool:
        """Whether the change is a result that may not be kept."""
        most = self._keep_bytes
        return isinstance(change, JobRecord) and most is not None and kept_by(change) > most

    def _forget(self, changes: Sequence[Forgotten]) -> None:
        numbers = [change.number for change in changes]
        if self._delete_jobs(numbers, and_not_dead="AND dead = 0") < len(numbers):
            for number in numbers:
                self.remove(self.places(number))

    def _reschedule(self, changes: Sequence[Rescheduled]) -> None:
        for number, due, attempt, deaths in changes:
            if (held := self.held(number)) is not None and not held[1]:
                job, _, body_crc = held
                self._update(job._replace(due=due, attempt=attempt, deaths=deaths), 0, body_crc)

    def _revive(self, changes: Sequence[Revived]) -> None:
        for number, options in changes:
            if (held := self.held(number)) is not None and held[1]:
                job, _, body_crc = held
                options = job.options if options is None else options
                self._update(job._replace(due=0.0, options=options, attempt=0, deaths=0), 0, body_crc)
                self.remove(place._replace(dead=0) for place in self.places(number))

    def _rewrite(self, job: StoredJob, dead: int) -> None:
        """Update everything of a job but its workload, which is in the file."""
        try:
            held = self.held(job.number)
        except (DamagedRow, sqlite3.OperationalError):  # the latter if a text is no UTF-8 any more
            self.connection.execute("UPDATE jobs SET dead = ? WHERE number = ?", (dead, job.number))
            return
        if held is None:
            raise StoreError(f"the workload of job {job.number} is not in this store")
        self._update(job._replace(workload=held[0].workload), dead, held[2])

    def _update(self, job: StoredJob, dead: int, body_crc: int) -> None:
        self.connection.execute(_UPDATE_JOB, (*job_row(job, dead, body_crc)[:-1], job.number))

    def _delete_jobs(self, numbers: Sequence[int], and_not_dead: str = "") -> int:
        """Delete jobs. Returns how many were there."""
        gone = self.connection.executemany(
            f"DELETE FROM jobs WHERE number BETWEEN ? AND ? {and_not_dead}", _spans(numbers)
        ).rowcount
        self.metadata.jobs -= gone
        if self._in_parts:
            for number in self._in_parts.intersection(numbers):
                self.loose.add(body_key(number, of_result=False))
        return gone

    # ------------------------------------------------------------------------------------------- parts

    def parts(self, key: int, body: Body) -> Iterator[tuple[int, memoryview]]:
        """The parts of a body, with their ids."""
        view = memoryview(body)
        size = max(self._part // 4, -(-len(view) // MOST_PARTS))
        for place, start in enumerate(range(0, len(view), size)):
            yield key << 8 | place, view[start : start + size]

    def insert_part(self, part: int, piece: memoryview) -> None:
        self.connection.execute("INSERT INTO parts (id, bytes) VALUES (?, ?)", (part, piece))

    def _insert_parts(self, key: int, body: Body) -> int:
        """Insert a body, unless it was written ahead. Returns its checksum."""
        if key in self.ahead:
            return self.ahead[key]
        if key in self.loose:
            self.connection.execute("DELETE FROM parts WHERE id BETWEEN ? AND ?", part_ids(key))
        for part, piece in self.parts(key, body):
            self.insert_part(part, piece)
        return crc32(body)

    def delete_loose_part(self, key: int) -> bool:
        """Delete a part of a body if its job or result is gone. False if there is nothing to delete."""
        if key in self.ahead or self.is_taken(key):
            return False
        if not key & 1:
            self._in_parts.discard(key >> 1)
        query = "DELETE FROM parts WHERE id = (SELECT min(id) FROM parts WHERE id BETWEEN ? AND ?)"
        return self.connection.execute(query, part_ids(key)).rowcount > 0

    def is_taken(self, key: int) -> bool:
        """Whether a job or result has that body in parts."""
        return self._size_of(key) is not None

    def _size_of(self, key: int) -> int | None:
        """The length of a body in parts, as its job or result has it. None if there is none."""
        table, column = ("records", "body") if key & 1 else ("jobs", "workload")
        row = self.connection.execute(
            f"SELECT {column} FROM {table} WHERE number = ? AND typeof({column}) = 'integer'", (key >> 1,)
        ).fetchone()
        return None if row is None else int(row[0])


def _spans(numbers: Iterable[int]) -> list[list[int]]:
    """The first and the last of each run of consecutive numbers.

    Jobs end nearly in the order of their numbers, and a span costs SQLite a quarter of its single numbers.
    """
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number <= spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return spans
