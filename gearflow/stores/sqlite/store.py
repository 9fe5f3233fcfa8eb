"""Jobs and results in one SQLite file: what was written is there after whatever end.

**Who waits for what.** All is done on the caller's thread, the server's event loop, but ``sync``: with a busy
loop, a writer thread would fight for the GIL at each row (measured: 977,000 rows a second become 2,000). A
group is one transaction, and in it one ``executemany`` for each kind of change. That writes to the page cache
of the kernel and survives the end of the process; ``sync`` is for a loss of power. See ``log``.

**Order in a group.** Changes of different jobs do not depend on each other, so they are sorted by kind. As
soon as a number comes a second time, what has been gathered is carried out first.

**The account.** The number of rows, and of bytes that are kept, stand in the file itself, written with each
group. That is how rows that are gone are noticed, which no checksum tells. See ``check`` for what is looked
at when, and ``rows`` for the checksums. In memory is nothing but the account, and which jobs lie in parts.

**The size of the file** is that of the most that was ever in it: freed pages are used again, but not given
back, as that costs a second entry for each page (auto_vacuum) or a stall (VACUUM). Only a file that is found
mostly empty when it is opened is rewritten, which then takes no time.

**A full disk** refuses a group, and nothing of it is kept. Before that, the log is copied into the main file,
which has room for it (see ``room``), so that it restarts in the space that it has. So jobs can end even then.

**A cut log.** SQLite takes a log that was cut for one that ends there. What was synced is before that point
if the cut is due to a loss of power; if somebody did it to the files, ``owner`` knows of more groups than are
there, and the store is not opened. After an orderly end there is no log at all.

**A failed sync** makes every later one fail. What is written then survives the end of the process, as with
``sync="off"``; what is to survive more must not be promised. The log stays as it is, also when the store is
closed. Only the next server that opens the file checks whether all of it is there.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from gearflow.broker.storage import Change, Contents, JobRecord, StoredJob
from gearflow.errors import StoreError
from gearflow.stores.sqlite.errors import DiskFull, damaged, failed, not_synced
from gearflow.stores.sqlite.files import FileLock
from gearflow.stores.sqlite.integrity import check_file, check_records, checked_jobs
from gearflow.stores.sqlite.opening import check_head, connect, make_ready, take_stock
from gearflow.stores.sqlite.recovery import check_not_planned
from gearflow.stores.sqlite.rows import DamagedRow
from gearflow.stores.sqlite.tables import Tables
from gearflow.stores.sqlite.wal import Sync, WriteAheadLog

_NO_ROOM: Final = 0.25  # seconds after which to try again to make some
_EXPIRE_BYTES: Final = 32 << 20  # of bodies that one call of expire removes, or a few more


class SqliteStore:
    """A ``Store`` in a file, which it owns until it is closed. ``durable``."""

    durable = True

    def __init__(self, path: str | Path, *, keep_bytes: int | None = None, sync: Sync = "batch") -> None:
        """Open the file, and create it if it is not there.

        Args:
            path: Of the file; beside it are written others, ``-wal``, ``-shm`` and ``-lock``.
            keep_bytes: How much may be kept of what ended; None: until it expires.
            sync: ``"off"`` makes ``sync`` wait for no disk: what was written survives the end of the process,
                but the file may be damaged by a loss of power. The others make a difference to the caller
                of ``sync``.

        Raises:
            StoreError: It is in use, not a store, of a later version, damaged, or cannot be opened.
        """
        self.path: Final = Path(path).resolve()
        self._keep_bytes = keep_bytes
        self._sync: Sync = sync
        self._owner = FileLock(self.path)
        try:
            check_not_planned(self.path)
            self.log = WriteAheadLog(self.path, sync, lambda: connect(self.path, sync))
        except (OSError, StoreError) as error:
            self._owner.release(orderly=False)
            if isinstance(error, OSError):
                raise failed(self.path, error) from error
            raise
        self._connection: sqlite3.Connection | None = None
        self._no_room_until = 0.0  # monotonic
        try:
            self._open()
        except BaseException as error:
            self._let_go(orderly=False)
            if isinstance(error, (sqlite3.Error, OSError)):
                raise failed(self.path, error) from error
            raise

    def _open(self) -> None:
        check_head(self.path, self.log.main_fd, self._owner)
        connection = self._connection = connect(self.path, self._sync)
        make_ready(self.path, connection)
        self.log.opened()
        account = take_stock(self.path, connection, self._owner)
        check_file(self.path, connection, self.log.main_fd)
        self._committed = account.copy()
        self._tables = Tables(connection, account, self._keep_bytes)
        self._owner.begin(account.name, account.groups)
        with self._transaction():
            pass  # what is new in the account

    # ----------------------------------------------------------------------------------------- the port

    def load(self) -> Contents:
        """See ``Store``; what is wrong with a job is noticed when it is its turn, or after the last."""
        with self._reading() as tables:
            check_records(self.path, tables.connection, tables.account)
            tables.read_uniques()
        with self._reading("which functions are paused") as tables:
            paused = tables.paused()
        return Contents(tables.account.name, tables.account.reserved, self._jobs(), paused)

    def _jobs(self) -> Generator[StoredJob]:
        with self._reading() as tables:
            yield from checked_jobs(self.path, tables.connection, tables.account)

    def write(self, changes: Sequence[Change]) -> None:
        if not changes:
            return
        try:
            self._carry_out(lambda tables: tables.apply(changes))
        except _AlreadyThere:
            self._carry_out(lambda tables: tables.apply_in_place_of_others(changes))

    def sync(self) -> None:
        self._check_open()
        groups = self._committed.groups
        try:
            self.log.sync()
        except OSError as error:
            raise not_synced(self.path, error) from error
        with suppress(OSError):
            self._owner.synced(groups)

    def job(self, number: int) -> StoredJob | None:
        with self._reading(f"job {number}") as tables:
            return tables.job(number)

    def ended(self, number: int) -> JobRecord | None:
        with self._reading(f"the result of job {number}") as tables:
            return tables.ended(number)

    def latest(self, function: bytes, unique: bytes) -> JobRecord | None:
        with self._reading(f"a result of {function!r}") as tables:
            return tables.latest(function, unique)

    def dead(self, function: bytes | None, after: int, limit: int) -> list[JobRecord]:
        with self._reading(f"a dead letter with a number above {after}") as tables:
            return tables.dead(function, after, limit)

    def expire(self, now: float, limit: int) -> bool:
        with self._reading() as tables:
            over = tables.over(now, self._keep_bytes, limit + 1)
        take, size = 0, 0
        while take < min(limit, len(over)) and size < _EXPIRE_BYTES:
            size += over[take].kept
            take += 1
        if take:
            self._carry_out(lambda tables: tables.remove(over[:take]))
        return len(over) > take

    def close(self) -> None:
        if self._connection is None:
            return
        self.log.stop()
        if self.log.broken is not None:
            self._leave_log()
            return
        orderly = False
        with suppress(sqlite3.Error):  # it is all in the log then
            self._connection.execute("PRAGMA synchronous = FULL")
            orderly = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        self._let_go(orderly=orderly)

    # ------------------------------------------------------------------------------------ transactions

    @contextmanager
    def _reading(self, what: str = "a table") -> Generator[Tables]:
        self._check_open()
        try:
            yield self._tables
        except DamagedRow:
            raise damaged(self.path, f"{what} is not what was written") from None
        except sqlite3.Error as error:
            raise failed(self.path, error) from error

    def _carry_out(self, change: Callable[[Tables], None]) -> None:
        """Do it in a transaction. On a full disk, try again if the log can restart without growing."""
        try:
            with self._transaction() as tables:
                change(tables)
        except DiskFull:
            if self.log.broken is not None or time.monotonic() < self._no_room_until:
                raise
            self._no_room_until = time.monotonic() + _NO_ROOM
            self.log.join()  # two cannot copy at the same time
            with suppress(sqlite3.Error):
                self._tables.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                self.log.room.make_again()
            with self._transaction() as tables:
                change(tables)
            self._no_room_until = 0.0

    @contextmanager
    def _transaction(self) -> Generator[Tables]:
        """All that is done in the block, or nothing; the account with it."""
        self._check_open()
        tables = self._tables
        with self.log.gate:
            try:
                tables.connection.execute("BEGIN IMMEDIATE")
                yield tables
                tables.account.groups += 1
                tables.account.update(tables.connection)
                self.log.room.make(tables.connection.execute("PRAGMA page_count").fetchone()[0])
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
        self._committed = tables.account.copy()
        with suppress(OSError):
            self._owner.written(tables.account.groups)

    def _roll_back(self) -> None:
        tables = self._tables
        tables.account = self._committed.copy()
        try:
            if tables.connection.in_transaction:  # SQLite has often done it itself
                tables.connection.execute("ROLLBACK")
        except sqlite3.Error:  # the connection is of no use any more
            tables.connection.close()
            with suppress(sqlite3.Error):  # then every use of the closed one is an error, until this succeeds
                self._connection = tables.connection = connect(self.path, self._sync)

    def _check_open(self) -> None:
        if self._connection is None:
            raise StoreError(f"{self.path} has been closed")

    def _leave_log(self) -> None:
        """Let go of the file, and leave the log as it is.

        SQLite copies it when a file is closed for the last time, but not by a connection that only reads.
        """
        with closing(sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True)) as last:
            with suppress(sqlite3.Error):
                last.execute("SELECT name FROM meta").fetchone()  # only then it has the file open
            self._let_go(orderly=False)

    def _let_go(self, *, orderly: bool) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self.log.close()
        self._owner.release(orderly=orderly)


class _AlreadyThere(StoreError):
    """A job or result of that number."""
