"""Recovery: saves what can be read of a damaged file into a new file that replaces it.

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

**Replacing.** The new file is complete before anything happens to the damaged one. Then a plan is written
beside the file, with ``-swap`` at the end of its name. Until it is there, nothing has changed. From then on
no server opens the file until the plan has been carried out, which can be repeated after a crash.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from gearflow.broker.storage import JobOutcome, JobRecord, Paused, StoredJob, size_of
from gearflow.errors import StoreError
from gearflow.stores.sqlite import schema
from gearflow.stores.sqlite.errors import DiskFull, failed, hint
from gearflow.stores.sqlite.files import FileLock, lock_database, sync_names
from gearflow.stores.sqlite.leaves import Leaves
from gearflow.stores.sqlite.opening import connect, make_ready
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
from gearflow.stores.sqlite.schema import DamagedMetadata, Metadata
from gearflow.stores.sqlite.streams import STREAM_COLUMNS, row_parts
from gearflow.stores.sqlite.tables import Tables

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


class DamagedTables(Reader):
    """Reads the rows of a damaged file that can be read."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
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

    def _rows(self, table: str, key: str, columns: str) -> Iterator[Row]:
        """The readable rows, by ranges of their keys, which are their first columns. Some come twice."""
        query = f"SELECT {columns} FROM {table} NOT INDEXED WHERE {key} BETWEEN ? AND ? ORDER BY {key} "
        ranges = deque([(0, _HIGHEST)])
        fruitless = 0
        while ranges and fruitless < _FRUITLESS:
            fruitless += 1
            first, last = ranges.popleft()
            for order in _ORDERS:
                with suppress(sqlite3.Error):
                    for row in self.connection.execute(query + order, (first, last)):
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
        super().__init__(connection)
        self.leaves = leaves
        self._parts = {cell.key: cell for cell in leaves.cells(columns=2)}

    def _rows(self, table: str, key: str, columns: str) -> Iterator[Row]:
        for cell in self.leaves.cells(columns.count(",") + 1):
            if (row := self.leaves.row(cell)) is not None:
                yield row

    def _next_part(self, first: int, last: int) -> Row | None:
        cell = next((self._parts[key] for key in range(first, last + 1) if key in self._parts), None)
        return self.leaves.row(cell) if cell is not None else None


def _pages(source: sqlite3.Connection, path: Path, work: Path) -> Path:
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


class Recovered(NamedTuple):
    """The result of a recovery. None means that it cannot be known."""

    kept_jobs: int  # with dead letters
    lost_jobs: int | None
    kept_records: int
    lost_records: int | None
    lost_groups: int  # of changes, at the end of a log that was cut: they are not among the lost
    same_name: bool  # handles that were given before are still good
    moved_to: Path  # where the damaged file is now
    same_paused: bool  # the functions that were paused still are
    doubtful_jobs: int = 0  # not among the kept: they may have ended before, and are dead letters now
    same_parts: bool = True  # no part of a stream is lost


def rescue_of(path: Path) -> Path:
    """The path of the new file until it replaces the damaged one."""
    return path.with_name(f"{path.name}-recovered")


def is_planned(path: Path) -> bool:
    """Whether a complete new file has yet to replace the damaged one."""
    return _plan_of(path).exists()


def check_not_planned(path: Path) -> None:
    """Raises StoreError if a recovery is not finished."""
    if is_planned(path):
        raise StoreError(f"{path}: its rescue was cut short before it was in its place; {hint(path)}")


def plan(path: Path, store: bytes, recovered: Recovered) -> None:
    """Write the plan. From here on the new file replaces the damaged one, also after a crash.

    Args:
        path: The damaged file.
        store: The name of the store in the new file.
        recovered: The result of the recovery.

    Raises:
        OSError: The plan could not be written.
    """
    final = _plan_of(path)
    draft = final.with_name(f"{final.name}-draft")
    text = json.dumps({"store": store.decode(), **recovered._asdict(), "moved_to": recovered.moved_to.name})
    try:
        with draft.open("w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(final)
    finally:
        draft.unlink(missing_ok=True)
    _sync_names_beside(path)


def carry_out(path: Path, owner: FileLock) -> Recovered:
    """Carry out the steps of the plan that remain.

    Raises:
        StoreError: Another file has been put there meanwhile, or the plan is damaged.
        OSError: A step failed. The plan is still there.
    """
    store, recovered = _read(path)
    if rescue_of(path).exists():
        for suffix in ("", "-wal", "-shm"):
            _move_aside(path, recovered.moved_to, suffix)
        owner.expect_nothing(store)
        rescue_of(path).rename(path)
        _sync_names_beside(path)
    _plan_of(path).unlink()
    return recovered


def _read(path: Path) -> tuple[bytes, Recovered]:
    """Read the plan: the name of the store in the new file, and the result of the recovery."""
    try:
        planned: dict[str, Any] = json.loads(_plan_of(path).read_text(encoding="ascii"))
        store = planned.pop("store").encode()
        return store, Recovered(moved_to=path.with_name(planned.pop("moved_to")), **planned)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StoreError(
            f"{_plan_of(path)} is damaged. If {path.name} is there, remove that plan and run this again; if "
            f"not, rename {rescue_of(path).name}, which is complete, to {path.name} first"
        ) from None


def _move_aside(path: Path, moved_to: Path, suffix: str) -> None:
    old, new = path.with_name(path.name + suffix), moved_to.with_name(moved_to.name + suffix)
    if not old.exists():
        return
    if new.exists():
        raise StoreError(
            f"{old} is there again, but it was moved to {new}: move it away to have the rescue in its place, "
            f"or remove {_plan_of(path)} to go on without the rescue"
        )
    old.rename(new)


def _plan_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-swap")


def _sync_names_beside(path: Path) -> None:
    with suppress(OSError):  # not every file system can
        sync_names(path.parent)


_GROUP: Final = 1000  # rows in a transaction
_KEEP: Final = 7 * 86400.0  # seconds to keep a dead letter whose result is lost
_DOUBT: Final = json.dumps(
    {"warnings": ["the file was damaged, and this job may have ended before"]}
).encode()


def recover(path: str | Path) -> Recovered:
    """Replace a file by a new one with everything that can be read of it. Finishes an interrupted recovery.

    Raises:
        StoreError: The file is in use or missing, or the new file does not fit on the disk. Then nothing has
            changed. Or the new file could not replace the damaged one. Then call this again.
    """
    path = Path(path).resolve()
    if not path.is_file() and not is_planned(path):
        raise StoreError(f"there is no file {path} to recover")
    owner = FileLock(path)
    try:
        if not is_planned(path):
            with path.open("r+b") as database:
                lock_database(path, database.fileno())
                _save(path, owner)
        return carry_out(path, owner)
    except (sqlite3.Error, OSError, DiskFull) as error:
        fault = error if isinstance(error, DiskFull) else failed(path, error)
        if isinstance(fault, DiskFull):
            text = "there is no room for the new file beside it; make room, and run this again"
            fault = DiskFull(f"{path}: {text}")
        raise fault from error
    finally:
        owner.release(orderly=False)  # nothing is expected of the new file


def _save(path: Path, owner: FileLock) -> None:
    """Write everything readable into a new file, and plan that it replaces the damaged one."""
    fresh, work = rescue_of(path), path.with_name(f"{path.name}-salvage")
    try:
        _remove(fresh)
        _remove(work)
        with closing(connect(fresh, "batch")) as target:
            make_ready(fresh, target)
            recovered, metadata = _salvage(path, owner, work, target)
            target.execute("PRAGMA synchronous = FULL")
            target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        fresh.chmod(0o600)  # as the store does, to protect the payloads
        plan(path, metadata.name, recovered)
    finally:
        if not is_planned(path):
            _remove(fresh)
        _remove(work)


def _salvage(
    path: Path, owner: FileLock, work: Path, target: sqlite3.Connection
) -> tuple[Recovered, Metadata]:
    with ExitStack() as stack:
        source = stack.enter_context(closing(open_damaged(path, work)))
        metadata = _metadata_of(source)
        known = metadata or Metadata(owner.name or os.urandom(4).hex().encode())
        tables = Tables(target, Metadata(known.name, known.reserved, copied=1))
        saved = _Saved(tables)
        damaged = DamagedTables(source)
        for job, dead in damaged.readable_jobs():
            saved.job(job, dead)
        ended = damaged.ended()
        if metadata is None:
            is_missing = damaged.failed
        else:
            is_missing = saved.found_jobs < metadata.jobs or len(ended) < metadata.records
        records = damaged.readable_records()
        for row in damaged.readable_streams():
            saved.stream_row(row)
        parts_are_missing = damaged.failed if metadata is None else saved.found_stream_rows < metadata.streams
        lost: LostRows | None = None
        if is_missing or parts_are_missing:
            leaves = stack.enter_context(Leaves(_pages(source, path, work)))
            lost = LostRows(source, leaves)
            for row in lost.readable_streams() if leaves.are_current else ():
                saved.stream_row(row)
        if is_missing and lost is not None:
            if lost.leaves.are_current:
                records = chain(records, lost.readable_records())
            all_ended = lost.ended() | ended
            for job, dead in lost.readable_jobs():
                if all_ended.get(job.number) is False or ended.get(job.number, dead) != dead:
                    continue  # it has ended, or was another row when it became a dead letter
                is_sure = lost.leaves.are_current or job.number in ended
                saved.job(job, dead, is_doubtful=not is_sure)
        saved.end_of_jobs()
        for record, is_letter in records:
            saved.record(record, is_letter)
        saved.end_of_records(time.time())
        paused = damaged.readable_paused()
        for function in paused or ():
            tables.pause(Paused(function, True))
    new = tables.metadata
    recovered = Recovered(
        kept_jobs=(kept := new.jobs - len(saved.doubtful)),
        lost_jobs=None if metadata is None else max(0, metadata.jobs - kept),
        kept_records=saved.found_records,
        lost_records=None if metadata is None else max(0, metadata.records - saved.found_records),
        lost_groups=0 if metadata is None else max(0, owner.expected - metadata.groups),
        same_name=metadata is not None or owner.name is not None,
        moved_to=_free_name(path),
        same_paused=paused is not None,
        doubtful_jobs=len(saved.doubtful),
        same_parts=not damaged.failed if metadata is None else saved.found_stream_rows >= metadata.streams,
    )
    return recovered, new


class _Saved:
    """Writes saved rows into the new file."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._numbers: set[int] = set()  # of jobs that are to run
        self._letters: dict[int, StoredJob] = {}  # without their workloads
        self._recorded: set[int] = set()  # numbers of results
        self._jobs: tuple[list[StoredJob], list[StoredJob]] = [], []  # to be written: alive, dead
        self._records: list[JobRecord] = []  # to be written
        self._stream_rows: list[Row] = []  # to be written
        self._stream_ids: set[int] = set()
        self._bytes = 0  # of what is to be written
        self.found_records = 0
        self.doubtful: set[int] = set()  # numbers of jobs that may have ended

    @property
    def found_jobs(self) -> int:
        """The number of jobs so far, with dead letters."""
        return len(self._numbers) + len(self._letters)

    @property
    def found_stream_rows(self) -> int:
        """The number of rows with parts of streams so far."""
        return len(self._stream_ids)

    def stream_row(self, row: Row) -> None:
        """Save a row with parts of a stream, before the results."""
        if row[0] not in self._stream_ids:
            self._stream_ids.add(row[0])
            self._stream_rows.append(row[1:])
            self._written(len(row[-1]))

    def job(self, job: StoredJob, dead: bool, *, is_doubtful: bool = False) -> None:
        """Save a job. A doubtful one becomes a dead letter."""
        if job.number in self._numbers or job.number in self._letters:
            return
        size = size_of(job.workload)
        if is_doubtful:
            self.doubtful.add(job.number)
            dead = True
        if dead:
            self._letters[job.number] = job._replace(workload=size)
        else:
            self._numbers.add(job.number)
        self._jobs[dead].append(job)
        self._written(size)

    def end_of_jobs(self) -> None:
        self._flush()
        last = max((*self._numbers, *self._letters), default=0)
        self._tables.metadata.reserved = max(self._tables.metadata.reserved, last + 1)

    def record(self, record: JobRecord, is_letter: bool) -> None:
        if record.number in self._numbers or record.number in self._recorded:
            return  # a job that is to run has no result
        self._recorded.add(record.number)
        self.found_records += 1
        self._records.append(record._replace(letter=self._letters.get(record.number) if is_letter else None))
        self._written(size_of(record.body))

    def end_of_records(self, now: float) -> None:
        """Give each dead letter whose result is lost an empty one, so that it can be found."""
        for number, letter in self._letters.items():
            if number not in self._recorded:
                self._records.append(
                    JobRecord(
                        number=number,
                        function=letter.function,
                        unique=letter.unique,
                        outcome=JobOutcome.FAILED,
                        body=b"",
                        submitted=letter.submitted,
                        started=0.0,
                        ended=now,
                        attempt=letter.attempt,
                        deaths=letter.deaths,
                        worker=b"",
                        notes=_DOUBT if number in self.doubtful else b"",
                        expires=now + _KEEP,
                        letter=letter,
                    )
                )
                self._written(0)
        self._flush()

    def _written(self, size: int) -> None:
        self._bytes += size
        rows = len(self._jobs[0]) + len(self._jobs[1]) + len(self._stream_rows) + len(self._records)
        if self._bytes > 64 << 20 or rows >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        tables = self._tables
        tables.connection.execute("BEGIN IMMEDIATE")
        for dead, jobs in enumerate(self._jobs):
            tables.insert_jobs(jobs, dead)
            jobs.clear()
        tables.save_stream_rows(self._stream_rows)
        self._stream_rows.clear()
        tables.insert_records(self._records)
        self._records.clear()
        self._bytes = 0
        tables.metadata.update(tables.connection)
        tables.connection.execute("COMMIT")


def _metadata_of(source: sqlite3.Connection) -> Metadata | None:
    try:
        return Metadata.read(source)
    except (sqlite3.Error, DamagedMetadata):
        return None


def _free_name(path: Path) -> Path:
    name = f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    number = 0
    while (free := path.with_name(f"{name}-{number}" if number else name)).exists():
        number += 1
    return free


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
