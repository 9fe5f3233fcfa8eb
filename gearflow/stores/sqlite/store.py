"""Jobs and results in one SQLite file. Everything written is there after any kind of end of the process.

**Threads.** Everything but ``sync`` runs on the caller's thread, the server's event loop. A writer thread
would compete with a busy loop for the GIL at each row (measured: 977,000 rows a second become 2,000). A group
is one transaction with one ``executemany`` for each kind of change. It goes to the kernel's page cache and so
survives the end of the process. ``sync`` makes it survive a loss of power, see ``wal``.

**Order in a group.** Changes of different jobs do not depend on each other, so they are sorted by kind. When
a number comes a second time, the changes gathered so far are applied first.

**Metadata.** The file itself holds the number of rows and of kept bytes, written with each group. Missing
rows are noticed by it, which checksums cannot do. ``integrity`` says what is checked when, and ``rows`` has
the checksums. Memory holds only the metadata, the hashes of uniques, the numbers of packed results, and which
jobs lie in parts.

**File size.** Free pages are used again but not returned to the file system. That would cost a second write
for each page (auto_vacuum) or block the server (VACUUM). A file that is mostly empty when it is opened is
rewritten, because that is fast.

**Full disk.** A group that does not fit is refused as a whole. Before that, the log is copied into the main
file, which has the space reserved (see ``wal``), so that the log restarts in the space it has. So jobs can
still end.

**Cut log.** SQLite takes a log that was cut for one that ends there. If a loss of power cut it, everything
synced is before the cut. If something else cut it, the lock file knows of more groups than are there, and the
store is not opened. After an orderly end there is no log.

**Large bodies.** A body longer than ``Tuning.part`` can be written ahead, each part in a transaction of its
own. The row that makes it visible comes last. Parts without a row, for the row could not be written, was
removed, or the process died, are *loose*. ``tidy`` removes them one by one.

A log of the length of a large body would be cut to its usual length on the event loop's thread, which takes a
while. So the caller of ``write_ahead`` waits while the store is ``behind``.

**Failed sync.** Every later sync fails, too. Writes then survive the end of the process, as with
``sync="off"``, and the server must not promise more. The log stays as it is, also when the store is closed.
The next server that opens the file checks whether all of it is there. ``reopen`` does the same at once.
SQLite verifies the log's checksums only when it opens the file, so the connection is closed. Then the whole
log is written into the main file and synced. What the failed sync may have lost is in the log, because a
log restarts only once a sync of the main file has succeeded.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar
from zlib import crc32

from gearflow.broker.parser import Body
from gearflow.broker.storage import (
    Change,
    Contents,
    DamagedEntry,
    EndedEntry,
    EndedOf,
    EndedPage,
    EndPlace,
    JobRecord,
    StoredJob,
)
from gearflow.errors import StoreError
from gearflow.stores.sqlite.ended import results_in, span_before
from gearflow.stores.sqlite.errors import DamagedFile, DiskFull, damaged, failed, hint, not_synced
from gearflow.stores.sqlite.files import FileLock, lock_database
from gearflow.stores.sqlite.integrity import (
    check_file,
    check_records,
    checked_jobs,
    checked_settings,
    dead_letters,
)
from gearflow.stores.sqlite.moved import check_not_moved
from gearflow.stores.sqlite.opening import BUSY, check_head, connect, make_ready, read_metadata
from gearflow.stores.sqlite.recovery import check_not_planned
from gearflow.stores.sqlite.rows import DamagedRow, body_key
from gearflow.stores.sqlite.schema import DamagedMetadata, Metadata, read_renumbered
from gearflow.stores.sqlite.tables import Tables
from gearflow.stores.sqlite.tuning import Tuning
from gearflow.stores.sqlite.wal import Sync, WriteAheadLog

T = TypeVar("T")


class SqliteStore:
    """A durable ``Store`` in a file. Owns the file until it is closed."""

    durable = True

    def __init__(
        self,
        path: str | Path,
        *,
        keep_bytes: int | None = None,
        sync: Sync = "batch",
        tuning: Tuning | None = None,
    ) -> None:
        """Open the file, and create it if it is missing.

        Args:
            path: The file. There are others beside it, with ``-wal``, ``-shm`` and ``-lock`` at the end.
            keep_bytes: Bytes of all kept results together. None means they are kept until they expire.
            sync: With ``"off"``, ``sync`` does not wait for the disk. Writes survive the end of the process,
                but a loss of power may damage the file. The other values only matter to the caller.
            tuning: The sizes to work with.

        Raises:
            StoreError: The file is in use, damaged, not a store, of a later version, or cannot be opened.
        """
        self._tuning = tuning or Tuning()
        self.large = self._tuning.part + 1
        self.path: Final = Path(path).resolve()
        self._keep_bytes = keep_bytes
        self._sync: Sync = sync
        self._lock = FileLock(self.path)
        try:
            check_not_planned(self.path)
            check_not_moved(self.path)
            self.log = WriteAheadLog(self.path, sync, self._tuning, self._connect)
        except (OSError, StoreError) as error:
            self._lock.release(orderly=False)
            if isinstance(error, OSError):
                raise failed(self.path, error) from error
            raise
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        self._no_retry_until = 0.0  # monotonic; the disk is full
        try:
            self._open()
        except BaseException as error:
            self._release(orderly=False)
            if isinstance(error, (sqlite3.Error, OSError)):
                raise failed(self.path, error) from error
            raise

    def _connect(self) -> sqlite3.Connection:
        return connect(self.path, self._sync, self._tuning)

    def _open(self) -> None:
        lock_database(self.path, self.log.main_fd)
        check_head(self.path, self.log.main_fd, self._lock)
        connection = self._connection = self._connect()
        make_ready(self.path, connection)
        self.log.opened()
        metadata = read_metadata(self.path, connection, self._lock, self._tuning)
        check_file(self.path, connection, self.log.main_fd, self._tuning)
        self._committed = metadata.copy()
        self._tables = Tables(connection, metadata, self._keep_bytes, self._tuning)
        self._lock.begin(metadata.name, metadata.groups)
        with self._transaction():
            pass  # write the metadata

    # ----------------------------------------------------------------------------------------- the port

    def load(self) -> Contents:
        """See ``Store``. A damaged job raises when the iteration reaches it, a missing one after the last."""
        with self._reading() as tables:
            check_records(self.path, tables.connection, tables.metadata)
            tables.read_indexes()
        with self._reading("which functions are paused") as tables:
            paused = tables.paused()
            parts = tables.stored_parts()
        with self._reading("the names of stores whose jobs were copied") as tables:
            renumbered = read_renumbered(tables.connection)
        metadata = tables.metadata
        with self._reading("a setting") as tables:
            settings = checked_settings(self.path, tables.connection, metadata)
            expected = metadata.jobs - dead_letters(tables.connection)
        jobs = self._jobs()
        return Contents(metadata.name, metadata.reserved, jobs, paused, parts, renumbered, settings, expected)

    def _jobs(self) -> Generator[StoredJob]:
        with self._reading() as tables:
            yield from checked_jobs(self.path, tables.connection, tables.metadata)

    def write(self, changes: Sequence[Change]) -> None:
        if not changes:
            return
        try:
            self._apply(lambda tables: tables.apply(changes))
        except _AlreadyThere:
            self._apply(lambda tables: tables.apply_in_place_of_others(changes))
        if self._tables.ahead:
            for change in changes:
                if isinstance(change, (StoredJob, JobRecord)):
                    self.drop_ahead(change)  # its parts are not loose if the change took them

    def write_ahead(self, change: StoredJob | JobRecord) -> Generator[None, None, None]:
        body = change.workload if isinstance(change, StoredJob) else change.body
        assert not isinstance(body, int)
        key = _key_of(change)
        tables = self._tables
        yield from self._remove_loose(key)
        if key in tables.ahead or tables.is_taken(key) or tables.is_too_large(change):
            return  # it was written before, will be in place of another, or will not be
        crc = 0
        try:
            for part, piece in tables.parts(key, body):
                self._apply(partial(Tables.insert_part, part=part, piece=piece))
                crc = crc32(piece, crc)
                yield
        except BaseException:
            tables.loose.add(key)
            raise
        tables.ahead[key] = crc

    @property
    def untidy(self) -> bool:
        return bool(self._tables.loose or self._tables.loose_streams)

    @property
    def busy(self) -> bool:
        return self.log.gate.locked()

    @property
    def behind(self) -> bool:
        return self.log.is_behind()

    @property
    def full(self) -> bool:
        return self.log.is_full()

    def tidy(self) -> Iterator[None]:
        while self._tables.loose:
            yield from self._remove_loose(next(iter(self._tables.loose)))
        while self._tables.loose_streams:
            number = next(iter(self._tables.loose_streams))
            if not self._apply(partial(Tables.delete_loose_rows, number=number)):
                self._tables.loose_streams.discard(number)
            yield

    def drop_ahead(self, change: StoredJob | JobRecord) -> None:
        if self._tables.ahead.pop(key := _key_of(change), None) is not None:
            self._tables.loose.add(key)

    def _remove_loose(self, key: int) -> Iterator[None]:
        while key in self._tables.loose:
            if not self._apply(partial(Tables.delete_loose_part, key=key)):
                self._tables.loose.discard(key)
            yield

    def sync(self) -> None:
        self._check_open()
        groups = self._committed.groups
        try:
            self.log.sync()
        except OSError as error:
            raise not_synced(self.path, error) from error
        with suppress(OSError):
            self._lock.synced(groups)

    def reopen(self) -> None:
        """See ``Store``. If the log cannot be read as it was written, nothing can be read or written."""
        if self._closed:
            self._check_open()
        if self.log.broken is None:
            return
        self.log.join()
        try:
            self.log.check_names()
        except OSError as error:
            raise not_synced(self.path, error) from error
        try:
            connection = self._open_again()
            connection.execute("PRAGMA busy_timeout = 0")  # it has a new log, or none, at once
            is_read, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            connection.execute(f"PRAGMA busy_timeout = {BUSY * 1000:.0f}")
            if is_read:
                text = "another program reads it, such as a backup; reopen it when that has ended"
                raise StoreError(f"{self.path} cannot be synced: {text}")
            self.log.space.reserve_again()
            check_file(self.path, connection, self.log.main_fd, self._tuning)
            check_records(self.path, connection, self._tables.metadata)
            checked_settings(self.path, connection, self._tables.metadata)
            for _ in checked_jobs(self.path, connection, self._tables.metadata):
                pass
        except (sqlite3.Error, OSError) as error:
            raise failed(self.path, error) from error
        with self._transaction():
            pass
        self.log.broken = None
        self.sync()

    def _open_again(self) -> sqlite3.Connection:
        """Open the file again, and check that the log has all groups of changes."""
        if self._connection is not None:
            self._close_beside_log(self._connection)
            self._connection = None
        connection = self._connect()
        try:
            found = Metadata.read(connection)
            if found != self._committed:
                raise DamagedMetadata
        except (DamagedMetadata, sqlite3.Error) as error:
            self._close_beside_log(connection)
            if isinstance(error, sqlite3.Error):
                raise
            raise damaged(self.path, "the last changes are not in it, or not as they were written") from None
        self._connection = self._tables.connection = connection
        return connection

    def job(self, number: int) -> StoredJob | None:
        with self._reading_one("jobs", "number", number, number) as tables:
            return tables.job(number)

    def head(self, number: int) -> StoredJob | None:
        with self._reading_one("jobs", "number", number, number) as tables:
            held = tables.held(number)
            return held[0] if held is not None else None

    def fetch(self, number: int) -> Generator[None, None, StoredJob | None]:
        with self._reading_one("jobs", "number", number, number) as tables:
            return (yield from tables.fetch(number))

    def ended(self, number: int) -> JobRecord | None:
        with self._reading_one("records", "number", number, number) as tables:
            return tables.record_of(number)

    def fetch_result(self, number: int) -> Generator[None, None, JobRecord | None]:
        with self._reading_one("records", "number", number, number) as tables:
            return (yield from tables.fetch_record(number))

    def latest(self, function: bytes, unique: bytes) -> JobRecord | None:
        self._check_open()
        for place in self._tables.find(function, unique):
            record = self._record_at(place)
            if record is not None and (record.function, record.unique) == (function, unique):
                return record
        return None

    def dead(
        self, function: bytes | None, after: int, limit: int, descending: bool = False
    ) -> list[JobRecord | DamagedEntry]:
        letters: list[JobRecord | DamagedEntry] = []
        with self._reading() as tables:
            for number, place in tables.dead(function, after, descending):
                try:
                    record = self._record_at(place, number)
                except DamagedEntry as error:
                    letters.append(error)
                else:
                    if record is not None and function in (None, record.function):
                        letters.append(record)
                if len(letters) == limit:
                    break
        return letters

    def _record_at(self, place: int, number: int = 0) -> JobRecord | None:
        with self._reading_one("records", "place", place, number) as tables:
            return tables.record_at(place)

    def dead_total(self) -> int:
        with self._reading("the number of dead letters") as tables:
            return dead_letters(tables.connection)

    def ended_before(self, question: EndedOf) -> EndedPage:
        with self._reading() as tables:
            span = span_before(tables.connection, question)
        entries: list[EndedEntry] = []
        for place, dead in span.rows:
            try:
                with self._reading_one("records", "place", place, 0) as tables:
                    found = list(results_in(tables.connection, place, span, question))
            except DamagedEntry as error:
                if place >= span.low:
                    entries.append(EndedEntry(EndPlace(0.0, place), error, dead))
                continue
            except DamagedFile:
                continue  # a pack, of which nothing can be read
            for each, record in found:
                entries.append(EndedEntry(EndPlace(0.0, each), record, dead))
                if len(entries) >= question.limit:
                    return EndedPage(entries, EndPlace(0.0, each), span.top - each, each - span.first)
        left = span.low - span.first
        return EndedPage(entries, EndPlace(0.0, span.low) if left else None, span.top - span.low, left)

    def parts(self, number: int, after: int, limit_bytes: int, limit: int = 64) -> list[tuple[int, Body]]:
        found: list[tuple[int, Body]] = []
        with self._reading() as tables:
            rows = tables.stream_rows(number, after, limit)
        for key, last in rows:
            try:
                with self._reading_one("streams", "number", number, number) as tables:
                    parts = tables.stream_row(key)
            except DamagedEntry as error:
                if found:
                    break  # the next call raises
                error.position = last
                raise
            for position, body in parts:
                if position > after:
                    limit_bytes -= len(body)
                    if found and (limit_bytes < 0 or len(found) == limit):
                        return found
                    found.append((position, body))
        return found

    def expire(self, now: float, limit: int) -> bool:
        with self._reading() as tables:
            over, partly = tables.over(now, self._keep_bytes, limit + 1)
        if partly:
            self._apply(lambda tables: tables.dissolve(partly, now))
            with self._reading() as tables:
                over, partly = tables.over(now, self._keep_bytes, limit + 1)
        count, results, size = 0, 0, 0
        while count < len(over) and results < limit and size < self._tuning.expire:
            size += over[count].kept
            results += over[count].results
            count += 1
        if count:
            self._apply(lambda tables: tables.remove(over[:count]))
        return len(over) > count or len(partly) > 0

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.log.stop()
        is_moved = isinstance(self.log.broken, FileNotFoundError)  # then the disk is sound
        if self._connection is None or (self.log.broken is not None and not is_moved):
            if self._connection is not None:
                self._close_beside_log(self._connection)
                self._connection = None
            self._release(orderly=False)
            return
        orderly = False
        with suppress(sqlite3.Error):  # the log has everything then
            self._connection.execute("PRAGMA synchronous = FULL")
            orderly = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        self._release(orderly=orderly)

    # ------------------------------------------------------------------------------------ transactions

    @contextmanager
    def _reading(self, what: str = "a table") -> Generator[Tables]:
        self._check_open()
        try:
            yield self._tables
        except DamagedRow:
            raise damaged(self.path, f"{what} is not what was written") from None
        except (sqlite3.Error, OSError) as error:
            raise failed(self.path, error) from error

    @contextmanager
    def _reading_one(self, table: str, key: str, value: int, number: int) -> Generator[Tables]:
        """Read one row. If that row is damaged, raise DamagedEntry.

        Args:
            table: The table.
            key: The column that finds the row.
            value: Its value.
            number: The number of the job. 0: the row has it.
        """
        self._check_open()
        try:
            yield self._tables
        except (DamagedRow, sqlite3.Error, OSError) as error:
            function = unique = b""
            with suppress(sqlite3.Error):
                if (names := self._tables.names(table, key, value)) is not None:
                    found, function, unique = names
                    number = number or found
            fault = self._fault_of(error, f"{_ENTRIES[table]} {number}")
            if not number or not isinstance(fault, DamagedFile):
                raise fault from error
            raise DamagedEntry(str(fault), number, function, unique) from None

    def _fault_of(self, error: DamagedRow | sqlite3.Error | OSError, what: str) -> StoreError:
        """The error for a row that could not be read."""
        if isinstance(error, DamagedRow):
            return damaged(self.path, f"{what} is not what was written")
        fault = failed(self.path, error)
        is_unreadable = getattr(error, "sqlite_errorname", "") == "SQLITE_IOERR_READ"
        if isinstance(fault, DamagedFile) or is_unreadable:
            return damaged(self.path, f"{what} cannot be read ({error})")
        return fault

    def _apply(self, change: Callable[[Tables], T]) -> T:
        """Make a change in a transaction. On a full disk, try again if the log can restart in its space."""
        try:
            with self._transaction() as tables:
                return change(tables)
        except DiskFull:
            if self.log.broken is not None or time.monotonic() < self._no_retry_until:
                raise
            self._no_retry_until = time.monotonic() + self._tuning.full_disk_retry
            self.log.join()  # only one checkpoint can run at a time
            with suppress(sqlite3.Error):
                self._tables.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                self.log.space.reserve_again()
            with self._transaction() as tables:
                changed = change(tables)
            self._no_retry_until = 0.0
            return changed

    @contextmanager
    def _transaction(self) -> Generator[Tables]:
        """Apply everything in the block, or nothing. The metadata is part of it."""
        self._check_open()
        tables = self._tables
        with self.log.gate:
            try:
                tables.connection.execute("BEGIN IMMEDIATE")
                yield tables
                tables.metadata.groups += 1
                tables.metadata.update(tables.connection)
                self.log.space.reserve(tables.connection.execute("PRAGMA page_count").fetchone()[0])
                tables.connection.execute("COMMIT")
            except BaseException as error:
                self._roll_back()
                if isinstance(error, sqlite3.IntegrityError):
                    raise _AlreadyThere(f"{self.path}: {error}") from error
                if isinstance(error, (sqlite3.Error, OSError)):
                    raise failed(self.path, error) from error
                if isinstance(error, DamagedRow):
                    raise damaged(self.path, "a job that was to be changed is not what was written") from None
                raise
        self._committed = tables.metadata.copy()
        tables.committed()
        with suppress(OSError):
            self._lock.written(tables.metadata.groups)

    def _roll_back(self) -> None:
        tables = self._tables
        tables.metadata = self._committed.copy()
        tables.rolled_back()
        try:
            if tables.connection.in_transaction:  # SQLite may have done it already
                tables.connection.execute("ROLLBACK")
        except sqlite3.Error:  # the connection is broken
            tables.connection.close()
            with suppress(sqlite3.Error):  # if this fails, each use of the closed connection raises
                self._connection = tables.connection = self._connect()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.path} has been closed")
        if self._connection is None:
            raise StoreError(f"{self.path} could not be opened again; {hint(self.path)}")

    def _close_beside_log(self, connection: sqlite3.Connection) -> None:
        """Close a connection, and leave the log as it is.

        SQLite copies the log when the last connection closes, unless that connection only reads.
        """
        with closing(sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True)) as last:
            with suppress(sqlite3.Error):
                last.execute("SELECT name FROM meta").fetchone()  # SQLite opens the file only now
            connection.close()

    def _release(self, *, orderly: bool) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self.log.close()
        self._lock.release(orderly=orderly)


_ENTRIES: Final = {"jobs": "job", "records": "the result of job", "streams": "the stream of job"}


def _key_of(change: StoredJob | JobRecord) -> int:
    return body_key(change.number, of_result=isinstance(change, JobRecord))


class _AlreadyThere(StoreError):
    """The file has a job or result of that number."""
