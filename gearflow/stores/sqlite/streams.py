"""Kept parts of streams in the table ``streams``. A row has consecutive parts of one job.

Parts that come in one group, one after the other, share a row, up to ``ROW_PARTS`` parts and ``ROW_BYTES``
bytes, because a row of its own costs a part several times as much. A longer part has a row of its own. A part
longer than ``Tuning.part`` is not kept, so its readers get a gap. Rows are never changed. A row goes when all
its parts may go.

* ``last`` is the position of the last part in the row, ``count`` the number of parts, ``size`` their bytes.
  If there are several, ``parts`` has their lengths, then the parts.
* A row without parts is a *mark*: so many parts were there and are not kept, or the run has begun.
* ``run`` is as the broker says. ``life`` grows when the parts begin again, also where the run does not. Only
  the rows of the last life of a job count.
* ``crc`` is over all of that.

The index has all that is asked often. Memory has only the numbers of the jobs that are to run and have parts.
When such a job ends, the bytes of its parts are added to ``kept`` of its result, and both go together.

**Loose rows.** Rows whose job is gone, of an earlier life, or dropped are loose if there are many. ``tidy``
removes them in steps. After a restart they are found again: by their life, or because there is neither a job
nor a result of that number. Only what was dropped is not, and goes with what is dropped next.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby
from operator import attrgetter
from struct import Struct
from struct import error as struct_error
from typing import Final
from zlib import crc32

from gearflow.broker.parser import Body
from gearflow.broker.storage import JobPart, PartsDropped, StoredParts
from gearflow.stores.sqlite.reader import Reader
from gearflow.stores.sqlite.rows import INLINE, PART_OVERHEAD, DamagedRow, Row
from gearflow.stores.sqlite.schema import PAGE, Metadata
from gearflow.stores.sqlite.tuning import Tuning

ROW_PARTS: Final = 64
ROW_BYTES: Final = 1 << 16

STREAM_COLUMNS: Final = "id, number, life, last, count, size, run, crc, parts"

_INSERT: Final = (
    "INSERT INTO streams (number, life, last, count, size, run, crc, parts) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_LIFE: Final = "number = ?1 AND life = (SELECT max(life) FROM streams WHERE number = ?1)"
_IS_NEEDED: Final = (
    "EXISTS (SELECT 1 FROM jobs WHERE jobs.number = {0}) OR "
    "EXISTS (SELECT 1 FROM records WHERE records.number = {0})"
)
_HEAD: Final = Struct("<qqqqqq").pack
_STEP_ROWS: Final = 256
_STEP_BYTES: Final = 1 << 20
"""So many rows are removed in a step of ``tidy``."""

_run: Final = attrgetter("run")


@cache
def _lengths(count: int) -> Struct:
    return Struct(f"<{count}I")


def _row(number: int, life: int, last: int, run: int, parts: Sequence[Body]) -> Row:
    """The columns of ``STREAM_COLUMNS`` but the first. Without parts it is a mark."""
    count, size = len(parts), 0
    whole: Body | bytearray = b""
    if count == 1:
        size = len(whole := parts[0])
        if size <= INLINE:
            whole = bytearray(whole)  # see ``rows``
    elif count:
        lengths = [len(part) for part in parts]
        size = sum(lengths)
        whole = bytearray().join((_lengths(count).pack(*lengths), *parts))
    crc = crc32(whole, crc32(_HEAD(number, life, last, count, size, run)))
    return number, life, last, count, size, run, crc, whole


def _rows(life: int, last: int, parts: Sequence[JobPart], longest: int) -> Iterator[Row]:
    """Parts of one job and run as rows. They come after the position ``last``."""
    number, _, _, run = parts[0]
    taken: list[Body] = []
    size, marked = 0, -1
    for _, position, body, _ in parts:
        if not position or len(body) > longest:
            marked = position
            continue
        if taken and (position != last + 1 or size + len(body) > ROW_BYTES or len(taken) == ROW_PARTS):
            yield _row(number, life, last, run, taken)
            taken, size = [], 0
        taken.append(body)
        size += len(body)
        last = position
    if taken:
        yield _row(number, life, last, run, taken)
    if marked >= last:
        yield _row(number, life, marked, run, ())


def row_parts(row: Row) -> list[tuple[int, Body]]:
    """The positions and parts in a row of ``STREAM_COLUMNS``.

    Raises:
        DamagedRow: The row is not what was written.
    """
    number, life, last, count, size, run, crc, whole = row[1:]
    try:
        if crc32(whole, crc32(_HEAD(number, life, last, count, size, run))) != crc:
            raise DamagedRow
        if count <= 1:
            return [(last, whole)] * count
        start, found = 4 * count, list[tuple[int, Body]]()
        for position, length in enumerate(_lengths(count).unpack_from(whole), last - count + 1):
            found.append((position, whole[start : start + length]))
            start += length
        return found
    except (struct_error, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise DamagedRow from error


class StreamTables(Reader):
    """Changes the table ``streams``. All methods may raise sqlite3.Error or DamagedRow."""

    def __init__(self, connection: sqlite3.Connection, metadata: Metadata, tuning: Tuning) -> None:
        super().__init__(connection)
        self.metadata = metadata
        self._part = tuning.part
        self._loose = tuning.loose
        self._streamed: set[int] = set()
        """Numbers of all jobs that are to run and have parts. Some of the jobs are gone."""
        self.loose_streams: set[int] = set()
        """Numbers of jobs with rows that may be loose. A rollback can bring the jobs back."""
        self._dropped: dict[int, tuple[int, int]] = {}
        """By number: the life and the position below which parts are dropped. A restart forgets it."""
        self._ended_streams: set[int] = set()  # not in ``_streamed`` any more once this is committed
        if metadata.streams:
            numbers = "SELECT DISTINCT number FROM streams"
            alive = f"SELECT number FROM jobs WHERE dead = 0 AND number IN ({numbers})"
            self._streamed.update(number for (number,) in connection.execute(alive))
            gone = f"SELECT number FROM ({numbers}) AS found WHERE NOT ({_IS_NEEDED.format('found.number')})"
            again = "SELECT number FROM streams GROUP BY number HAVING min(life) < max(life)"
            self.loose_streams.update(number for (number,) in connection.execute(f"{gone} UNION {again}"))

    def committed(self) -> None:
        """What was changed is there."""
        if self._ended_streams:
            self._streamed -= self._ended_streams
            for number in self._ended_streams:
                self._dropped.pop(number, None)
            self._ended_streams.clear()

    def rolled_back(self) -> None:
        """What was changed is not there."""
        self._ended_streams.clear()

    # ---------------------------------------------------------------------------------------- reading

    def stored_parts(self) -> dict[int, StoredParts]:
        """What is there of each job that is to run and has parts, by number."""
        found: dict[int, StoredParts] = {}
        for number in self._streamed:
            _, last, run = self._end_of_stream(number)
            first, size = self.connection.execute(
                f"SELECT min(last - count + 1), sum(size) FROM streams WHERE {_LIFE} AND count > 0", (number,)
            ).fetchone()
            if first is None:
                first, size = last + 1 if last else 0, 0
            if run:
                found[number] = StoredParts(first, last, size, run)
        return found

    def _end_of_stream(self, number: int) -> tuple[int, int, int]:
        """The last life of a stream, the position of its last part, and its run, which is 0 without one."""
        found = self.connection.execute(
            "SELECT life, last, run FROM streams WHERE number = ? ORDER BY life DESC, last DESC LIMIT 1",
            (number,),
        ).fetchall()
        return found[0] if found else (1, 0, 0)

    def stream_rows(self, number: int, after: int, limit: int) -> list[tuple[int, int]]:
        """The ids of the first rows with parts after a position, and the positions of their last parts."""
        if number in self.loose_streams and not self._is_needed(number):
            return []
        return self.connection.execute(
            f"SELECT id, last FROM streams WHERE {_LIFE} AND last > ?2 AND count > 0 ORDER BY last LIMIT ?3",
            (number, after, limit),
        ).fetchall()

    def stream_row(self, key: int) -> list[tuple[int, Body]]:
        """The positions and parts in a row."""
        found = self.connection.execute(f"SELECT {STREAM_COLUMNS} FROM streams WHERE id = ?", (key,))
        return row_parts(found.fetchall()[0])

    def _bytes_of_stream(self, number: int) -> int:
        """The bytes that the parts of a job count."""
        (size,) = self.connection.execute(
            f"SELECT ifnull(sum(size + {PART_OVERHEAD} * count), 0) FROM streams WHERE {_LIFE}", (number,)
        ).fetchone()
        return int(size)

    # --------------------------------------------------------------------------------------- changing

    def _add_parts(self, parts: Iterable[JobPart]) -> None:
        """Keep parts of jobs that are to run. What is there already is left out."""
        by_number: dict[int, list[JobPart]] = {}
        for part in parts:
            try:
                by_number[part[0]].append(part)
            except KeyError:
                by_number[part[0]] = [part]
        rows: list[Row] = []
        for number, of_job in by_number.items():
            if number in self._streamed or self._is_to_run(number):
                if of_job[0].run != of_job[-1].run:
                    for _, of_run in groupby(of_job, _run):
                        self.insert_stream_rows(list(self._rows_of(list(of_run))))
                else:
                    rows += self._rows_of(of_job)
        self.insert_stream_rows(rows)

    def _rows_of(self, parts: list[JobPart]) -> Iterator[Row]:
        """New rows for parts of one job and run."""
        number, position, _, run = parts[0]
        life, last, last_run = self._end_of_stream(number)
        if run == last_run:
            if position <= last:
                parts = [part for part in parts if part.position > last]
        elif last_run:
            life, last = self._restart_stream(number), 0
        return _rows(life, last, parts, self._part) if parts else iter(())

    def insert_stream_rows(self, rows: Sequence[Row]) -> None:
        """Insert rows without their ids."""
        self.connection.executemany(_INSERT, rows)
        self.metadata.streams += len(rows)
        self.metadata.streamed += sum(row[4] for row in rows)

    def save_stream_rows(self, rows: Sequence[Row]) -> None:
        """Insert rows without their ids, before the results that they belong to."""
        self._streamed.update(row[0] for row in rows)
        self.insert_stream_rows(rows)

    def save_parts(self, parts: Sequence[JobPart]) -> None:
        """Insert parts of one job and run, before its result. What is there already is left out."""
        self._streamed.add(parts[0].number)
        self.insert_stream_rows(list(self._rows_of(list(parts))))

    def expect_results(self) -> None:
        """Results of jobs that have parts will be inserted."""
        numbers = self.connection.execute("SELECT DISTINCT number FROM streams")
        self._streamed.update(number for (number,) in numbers)

    def _is_to_run(self, number: int) -> bool:
        """Whether there is such a job. If so, its stream begins."""
        found = self.connection.execute("SELECT 1 FROM jobs WHERE number = ? AND dead = 0", (number,))
        if not found.fetchall():
            return False
        self._restart_stream(number)
        self._streamed.add(number)
        return True

    def _drop_parts(self, changes: Iterable[PartsDropped]) -> None:
        for number, below in changes:
            if number in self._streamed:
                if below is None:
                    self._restart_stream(number)
                    continue
                life, last, run = self._end_of_stream(number)
                if below <= last:
                    self._dropped[number] = life, below
                    if self.delete_loose_rows(number):
                        self.loose_streams.add(number)
                elif run:
                    life = self._restart_stream(number)
                    self.insert_stream_rows([_row(number, life, last, run, ())])

    def _drop_streams(self, numbers: Iterable[int]) -> None:
        """Remove the parts of jobs that go."""
        if self.metadata.streams:
            for number in numbers:
                self._drop_stream(number)
                self._ended_streams.add(number)

    def _restart_stream(self, number: int) -> int:
        """The rows of a job do not count any more. Returns the next life."""
        self._ended_streams.discard(number)
        self._dropped.pop(number, None)
        if not self.metadata.streams:
            return 1
        life, _, run = self._end_of_stream(number)
        if not run or not self._drop_stream(number):
            return 1
        self.insert_stream_rows([_row(number, life + 1, 0, 0, ())])
        return life + 1

    def _drop_stream(self, number: int) -> bool:
        """Remove the parts of a job. Returns whether they are too many, so that they are loose now."""
        rows = self.connection.execute(
            "SELECT size FROM streams WHERE number = ? LIMIT ?", (number, self._loose // PAGE + 1)
        ).fetchall()
        if sum(size + PAGE for (size,) in rows) > self._loose:
            self.loose_streams.add(number)
            return True
        if rows:
            self._delete_rows("number = ?", (number,))
        return False

    def _delete_rows(self, which: str, values: tuple[int, ...]) -> None:
        count, size = self.connection.execute(
            f"SELECT count(*), ifnull(sum(size), 0) FROM streams WHERE {which}", values
        ).fetchone()
        if count:
            self.connection.execute(f"DELETE FROM streams WHERE {which}", values)
            self.metadata.streams -= count
            self.metadata.streamed -= size

    def _is_needed(self, number: int) -> bool:
        """Whether there is a job or a result of this number."""
        found = self.connection.execute(f"SELECT {_IS_NEEDED.format('?1')}", (number,))
        return bool(found.fetchone()[0])

    def delete_loose_rows(self, number: int) -> bool:
        """Delete some of the loose rows of a job, and of those that are dropped. False if that was all."""
        which = ""
        if self._is_needed(number):
            which = (
                "AND (life < (SELECT max(life) FROM streams WHERE number = ?1) OR life = ?2 AND last < ?3)"
            )
        life, below = self._dropped.get(number, (0, 0))
        rows = self.connection.execute(
            f"SELECT id, size FROM streams WHERE number = ?1 {which} ORDER BY life, last LIMIT ?4",
            (number, life, below, _STEP_ROWS + 1),
        ).fetchall()
        ids: list[tuple[int]] = []
        total = 0
        for key, size in rows[:_STEP_ROWS]:
            if ids and total + size > _STEP_BYTES:
                break
            ids.append((key,))
            total += size
        self.connection.executemany("DELETE FROM streams WHERE id = ?", ids)
        self.metadata.streams -= len(ids)
        self.metadata.streamed -= total
        return len(ids) < len(rows)
