"""Changes the tables. The caller begins and ends the transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from heapq import merge
from itertools import groupby, starmap
from typing import Any, Final
from zlib import crc32

from gearflow.broker.parser import Body
from gearflow.broker.storage import (
    Change,
    Edited,
    Forgotten,
    Freed,
    JobPart,
    JobRecord,
    PartsDropped,
    Paused,
    Rescheduled,
    Reserved,
    Revived,
    Setting,
    StoredJob,
    Ticked,
)
from gearflow.errors import StoreError
from gearflow.stores.sqlite.packs import (
    PACK_HEAD,
    PACKED,
    RESULTS,
    Pack,
    PackedNumbers,
    is_pack,
    is_packable,
    numbers_in,
    pack_row,
)
from gearflow.stores.sqlite.reader import PLACE, Place
from gearflow.stores.sqlite.rows import (
    JOB_HEAD,
    KEPT,
    MOST_PARTS,
    RECORD_COLUMNS,
    TOKEN,
    DamagedRow,
    Row,
    Uniques,
    body_key,
    job_row,
    kept_by,
    part_ids,
    paused_id,
    paused_row,
    record_row,
    row_paused,
    row_record,
    token_of,
)
from gearflow.stores.sqlite.schema import Metadata
from gearflow.stores.sqlite.settings import write_settings
from gearflow.stores.sqlite.streams import StreamTables
from gearflow.stores.sqlite.tuning import Tuning

_DISSOLVED: Final = 8
"""Packs that are dissolved at a time. Each takes some tenths of a millisecond."""

_INSERT_JOB: Final = f"INSERT INTO jobs ({JOB_HEAD}, workload) VALUES ({', '.join('?' * 14)})"
_UPDATE_JOB: Final = f"UPDATE jobs SET ({JOB_HEAD}) = ({', '.join('?' * 13)}) WHERE number = ?"
_REPLACE_JOB: Final = _INSERT_JOB.replace("INSERT", "REPLACE", 1)
_INSERT_RECORD: Final = f"INSERT INTO records ({RECORD_COLUMNS}) VALUES ({', '.join('?' * 19)})"


class Tables(StreamTables):
    """The tables of an open file, and their metadata. All methods may raise sqlite3.Error or DamagedRow."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        metadata: Metadata,
        keep_bytes: int | None = None,
        tuning: Tuning = Tuning(),  # noqa: B008  (frozen)
    ) -> None:
        """A result that is larger than ``keep_bytes`` is not kept, because all others would have to go."""
        super().__init__(connection, metadata, tuning)
        last = connection.execute(f"SELECT place + {RESULTS} FROM records ORDER BY place DESC LIMIT 1")
        self._next_place = int((last.fetchone() or (1,))[0] or 1)
        self._keep_bytes = keep_bytes
        self._pack = tuning.pack
        keys = [key for (key,) in connection.execute("SELECT DISTINCT id >> 8 FROM parts")]
        self._in_parts = {key >> 1 for key in keys if not key & 1}
        """Numbers of jobs whose workloads lie in parts. Some of them are gone."""
        self.loose = {key for key in keys if self._size_of(key) is None}
        """Keys of bodies in parts whose jobs or results may be gone. A rollback can bring them back."""
        self.ahead: dict[int, int] = {}
        """Checksums of the bodies that are written ahead of their jobs or results, by key."""
        self._unreadable: set[int] = set()  # places of damaged packs
        self._uniques = Uniques()
        self._numbers = PackedNumbers()

    def read_indexes(self) -> None:
        """Build the indexes of uniques and of packed numbers."""
        self._uniques, self._numbers = Uniques(), PackedNumbers()
        rows = self.connection.execute(
            "SELECT place, token FROM records WHERE number IS NOT NULL AND token != 0 ORDER BY place"
        )
        for place, token in merge(rows, self._packed_tokens()):
            self._uniques.add(token, place)

    def _packed_tokens(self) -> Iterator[tuple[int, int]]:
        """The places and tokens of packed results. Adds their numbers to the index."""
        query = f"SELECT {PACK_HEAD} FROM records WHERE number IS NULL ORDER BY place"
        for row in self.connection.execute(query):
            numbers, tokens = numbers_in(row)
            self._numbers.add(numbers, row[0])
            if row[TOKEN]:
                yield from ((place, token) for place, token in enumerate(tokens, row[0]) if token)

    def find(self, function: bytes, unique: bytes) -> Iterator[int]:
        """The places where the latest result of a unique may be, the youngest first."""
        return self._uniques.find(token_of(function, unique))

    def apply(self, changes: Sequence[Change]) -> None:
        """Apply changes in order. Raises sqlite3.IntegrityError if a number is there already."""
        kinds: dict[type[Change], list[Any]] = {}
        numbers: set[int | bytes] = set()  # of jobs; others name what they change as well
        for change in without_ticks(changes):
            if change[0] in numbers:
                self._apply_kinds(kinds)
                kinds.clear()
                numbers.clear()
            if (kind := change.__class__) is not JobPart:  # parts are applied before all others
                numbers.add(change[0])
            if kind in kinds:
                kinds[kind].append(change)
            else:
                kinds[kind] = [change]
        self._apply_kinds(kinds)

    def apply_in_place_of_others(self, changes: Sequence[Change]) -> None:
        """Apply changes one by one. Whatever the file has under the number of a job or result is removed."""
        for change in without_ticks(changes):
            if isinstance(change, (StoredJob, JobRecord)):
                places = [place._replace(dead=0) for place in self.places(change.number)]
                if isinstance(change, JobRecord) and places and self.metadata.streams:
                    self._streamed.add(change.number)  # its parts are those of the new result
                self.remove(places, with_streams=isinstance(change, StoredJob))
                self._remove_packed(change.number)
            if isinstance(change, StoredJob) and not isinstance(change.workload, int):
                self._restart_stream(change.number)
                self._delete_jobs([change.number])
            self._apply_kinds({type(change): [change]})

    def record_at(self, place: int) -> JobRecord | None:
        """The result at this place. A body in parts is its length."""
        row = self._row_covering(place)
        if row is None:
            return None
        return Pack(row)[place - row[0]] if is_pack(row) else row_record(row)

    def _row_covering(self, place: int) -> Row | None:
        query = f"SELECT {RECORD_COLUMNS} FROM records WHERE place <= ? ORDER BY place DESC LIMIT 1"
        row: Row | None = next(iter(self.connection.execute(query, (place,)).fetchall()), None)
        if row is None or (
            row[0] != place and not (is_pack(row) and place < row[0] + len(numbers_in(row)[0]))
        ):
            return None
        return row

    def record_of(self, number: int) -> JobRecord | None:
        """The last result of a job. A body in parts is its length."""
        row = self.record_row_at("number", number)
        packed = self._packed(number)
        if packed is not None and (row is None or row[0] < packed[1]):
            pack, place = packed
            return pack[place - pack.place]
        return None if row is None else row_record(row)

    def fetch_record(self, number: int) -> Generator[None, None, JobRecord | None]:
        """Read a result in steps. None if it is gone. If another has taken its number, that one is read."""
        while (record := self.record_of(number)) is not None and isinstance(record.body, int):
            row = self.record_row_at("number", number)
            assert row is not None
            try:
                return (yield from self.whole_record_in_steps(row))
            except DamagedRow:
                now = self.record_row_at("number", number)
                if now is not None and now[0] == row[0]:  # at the same place
                    raise
        return record

    def _packed(self, number: int) -> tuple[Pack, int] | None:
        """The pack with the last packed result of a job, and the result's place."""
        for place in self._numbers.find(number):
            row = self._row_covering(place)
            if row is not None and is_pack(row) and numbers_in(row)[0][place - row[0]] == number:
                return Pack(row), place
        return None

    def over(self, now: float, keep_bytes: int | None, limit: int) -> tuple[list[Place], list[Place]]:
        """The first expired results, then the oldest results beyond ``keep_bytes``. And the packs of which
        only some results are over."""
        query, more = f"SELECT {PLACE} FROM records", limit + len(self._unreadable)
        expired = self.connection.execute(f"{query} WHERE expires <= ? ORDER BY expires LIMIT ?", (now, more))
        found: list[Place] = []
        partly: list[Place] = []
        for place in starmap(Place, expired):
            if place.last_expires is None or place.last_expires <= now:
                found.append(place)
            elif place.place not in self._unreadable and len(partly) < _DISSOLVED:
                partly.append(place)
        excess = 0 if keep_bytes is None else self.metadata.kept - keep_bytes
        excess -= sum(place.kept for place in found)
        if excess > 0 and len(found) < limit:
            known = set(found)
            for place in starmap(Place, self.connection.execute(f"{query} ORDER BY place LIMIT ?", (limit,))):
                if excess <= 0 or len(found) >= limit:
                    break
                if place in known:
                    continue
                if place.results > 1 and place.kept > excess and place.place not in self._unreadable:
                    partly.append(place)
                    break
                found.append(place)
                excess -= place.kept
        return found, partly

    def dissolve(self, places: Iterable[Place], now: float) -> None:
        """Give the results in packs rows, except those that are expired. A damaged pack stays: it goes as a
        whole, when all of it is over."""
        for place in set(places):
            try:
                row = self._row_covering(place.place)
                pack = Pack(row) if row is not None else None
            except (DamagedRow, sqlite3.OperationalError):  # the latter if a blob is no blob any more
                self._unreadable.add(place.place)
            else:
                if pack is not None:
                    self._dissolve(pack, lambda record: record.expires <= now)

    def remove(self, places: Iterable[Place], *, with_streams: bool = True) -> None:
        """Remove results, with their dead letters and parts."""
        places = list(places)
        self._remove(places)
        if with_streams and self.metadata.streams:
            self._drop_streams([place.number for place in places])
        if (first := self.connection.execute("SELECT min(place) FROM records").fetchone()[0]) is not None:
            self._uniques.forget_before(first)
            self._numbers.forget_before(first)

    def _remove(self, places: Sequence[Place]) -> None:
        """Remove results from the tables. Their places are still in the indexes."""
        self.connection.executemany("DELETE FROM records WHERE place = ?", [place[:1] for place in places])
        for place in places:
            self.metadata.records -= place.results
            self.metadata.kept -= place.kept
            self.metadata.tokens -= place.token
            if place.dead:
                self._delete_jobs([place.number])
            if place.kept > self._part and place.number:
                self.loose.add(body_key(place.number, of_result=True))

    def _apply_kinds(self, kinds: dict[type[Change], list[Any]]) -> None:
        """Apply changes by kind. No two are of the same job, but parts, which come before others."""
        if (parts := kinds.pop(JobPart, None)) is not None:
            self._add_parts(parts)
        for kind, changes in kinds.items():
            if kind is StoredJob:
                self._store(changes)
            elif kind is JobRecord:
                self._end(changes)
            elif kind is Forgotten:
                self._forget(changes)
            elif kind is Rescheduled:
                self._reschedule(changes)
            else:
                self._apply_rare(kind, changes)

    def _apply_rare(self, kind: type[Change], changes: list[Any]) -> None:
        """Apply changes of a kind that is not frequent."""
        if kind is Revived:
            self._revive(changes)
        elif kind is PartsDropped:
            self._drop_parts(changes)
        elif kind is Edited:
            self._edit(changes)
        elif kind is Freed:
            self._free(changes)
        elif kind is Setting:
            write_settings(self.connection, self.metadata, changes)
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
        is_short = self._is_packable if self._streamed else is_packable
        for packable, group in groupby(records, is_short):
            run = list(group)
            if packable and len(run) >= self._pack:
                for start in range(0, len(run), PACKED):
                    self._insert_pack(run[start : start + PACKED])
            else:
                for row in self._insert_rows(enumerate(run, self._next_place)):
                    if row[TOKEN]:
                        self._uniques.add(row[TOKEN], row[0])
                self._next_place += len(run)

    def _is_packable(self, record: JobRecord) -> bool:
        return record.number not in self._streamed and is_packable(record)

    def _insert_rows(self, records: Iterable[tuple[int, JobRecord]]) -> list[Row]:
        """Insert results at places."""
        rows = [self._new_row(record, place) for place, record in records]
        self.connection.executemany(_INSERT_RECORD, rows)
        self.metadata.records += len(rows)
        for row in rows:
            self.metadata.kept += row[KEPT]
            self.metadata.tokens += row[TOKEN]
        return rows

    def _insert_pack(self, records: Sequence[JobRecord]) -> None:
        """Insert results as a pack."""
        place = self._next_place
        row = pack_row(records, place)
        self.connection.execute(_INSERT_RECORD, row)
        self._next_place += len(records)
        self.metadata.records += len(records)
        self.metadata.kept += row[KEPT]
        self.metadata.tokens += row[TOKEN]
        self._numbers.add([record.number for record in records], place)
        if row[TOKEN]:
            for each, token in enumerate(numbers_in(row)[1], place):
                if token:
                    self._uniques.add(token, each)

    def _dissolve(self, pack: Pack, is_gone: Callable[[JobRecord], bool]) -> None:
        """Remove a pack. The results in it that are not gone get rows."""
        left = [(pack.place + index, record) for index, record in enumerate(pack) if not is_gone(record)]
        self._remove([Place(pack.place, 0, 0, pack.row[TOKEN], pack.row[KEPT], len(pack), None)])
        for place, record in left:
            others = self.places(record.number)
            if all(other.place < place for other in others):
                self._remove(others)
                self._insert_rows([(place, record)])

    def _remove_packed(self, number: int) -> bool:
        """Remove the packed result of a job. False if there is none."""
        found = self._packed(number)
        if found is not None:
            self._dissolve(found[0], lambda record: record.number == number)
        return found is not None

    def _new_row(self, record: JobRecord, place: int) -> Row:
        body, crc = record.body, 0
        if not isinstance(body, int) and len(body) > self._part:
            crc = self._insert_parts(body_key(record.number, of_result=True), body)
            record = record._replace(body=len(body))
        streamed = self._end_stream(record) if record.number in self._streamed else 0
        return record_row(record, place, crc, streamed)

    def _end_stream(self, record: JobRecord) -> int:
        """A job with parts has ended. Returns their bytes. If they are too many to be kept, they go."""
        streamed = self._bytes_of_stream(record.number)
        if self._keep_bytes is not None and kept_by(record) + streamed > self._keep_bytes:
            self._restart_stream(record.number)
            streamed = 0
        self._ended_streams.add(record.number)
        return streamed

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
        numbers = [record.number for record in records if kept_by(record) > most]
        self._drop_streams(numbers)
        self._delete_jobs(numbers)
        return [record for record in records if kept_by(record) <= most]

    def is_too_large(self, change: StoredJob | JobRecord) -> bool:
        """Whether the change is a result that may not be kept."""
        most = self._keep_bytes
        return isinstance(change, JobRecord) and most is not None and kept_by(change) > most

    def _forget(self, changes: Sequence[Forgotten]) -> None:
        numbers = [change.number for change in changes]
        self._drop_streams(numbers)
        if self._delete_jobs(numbers, and_not_dead="AND dead = 0") < len(numbers):
            for number in numbers:
                self.remove(self.places(number))
                self._remove_packed(number)

    def _reschedule(self, changes: Sequence[Rescheduled]) -> None:
        for number, due, attempt, deaths, options in changes:
            if (held := self.held(number)) is not None and not held[1]:
                job, _, body_crc = held
                options = job.options if options is None else options
                job = job._replace(due=due, options=options, attempt=attempt, deaths=deaths)
                self._update(job, 0, body_crc)

    def _revive(self, changes: Sequence[Revived]) -> None:
        for number, options in changes:
            if (held := self.held(number)) is not None and held[1]:
                job, _, body_crc = held
                options = job.options if options is None else options
                self._update(job._replace(due=0.0, options=options, attempt=0, deaths=0), 0, body_crc)
                self._restart_stream(number)
                self.remove((place._replace(dead=0) for place in self.places(number)), with_streams=False)

    def _edit(self, changes: Sequence[Edited]) -> None:
        for number, priority, due, options, workload in changes:
            if (held := self.held(number)) is None or held[1]:
                continue
            job, _, body_crc = held
            job = job._replace(priority=priority, due=due, options=options)
            if workload is None:
                self._update(job, 0, body_crc)
                continue
            key = body_key(number, of_result=False)
            if isinstance(job.workload, int):  # it may lie in parts, whose key is that of the new one
                self.connection.execute("DELETE FROM parts WHERE id BETWEEN ? AND ?", part_ids(key))
            kept: Body | int = workload
            if len(workload) > self._part:  # what was written ahead in this group was that of the job
                self._in_parts.add(number)
                kept, body_crc = len(workload), self._insert_all_parts(key, workload)
            self.connection.execute(_REPLACE_JOB, job_row(job._replace(workload=kept), 0, body_crc))

    def _free(self, changes: Sequence[Freed]) -> None:
        for change in changes:
            if (held := self.held(change.number)) is not None and not held[1]:
                job, _, body_crc = held
                self._update(job._replace(unique=b""), 0, body_crc)

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
        return self._insert_all_parts(key, body)

    def _insert_all_parts(self, key: int, body: Body) -> int:
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


def without_ticks(changes: Sequence[Change]) -> Sequence[Change]:
    """The changes with a setting and a job in place of each tick."""
    if Ticked not in map(type, changes):
        return changes
    flat: list[Change] = []
    for change in changes:
        if isinstance(change, Ticked):
            flat.append(Setting(change.name, "schedule", change.value))
            if change.job is not None:
                flat.append(change.job)
        else:
            flat.append(change)
    return flat


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
