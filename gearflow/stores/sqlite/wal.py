"""The write-ahead log: syncs, checkpoints, and disk space for checkpoints, without blocking writers.

The event loop's connection appends groups to the log and never waits for the disk. ``synchronous=NORMAL``
does not sync at commit, and ``wal_autocheckpoint=0`` disables SQLite's own checkpoints. Other threads do
both:

* ``sync`` syncs the log through its own descriptor. Everything written before the call then survives a loss
  of power. It is in the log or, if the log has restarted meanwhile, in the main file, because a log restarts
  only after SQLite has copied all of it there and synced that.
* A checkpoint copies the log into the main file if the log is longer than ``Tuning.checkpoint``. It is a
  PASSIVE checkpoint on a connection of its own, so that others can write meanwhile. The log restarts with the
  next transaction that finds *all* of it copied. Under constant load its end is always new, so the thread
  repeats the checkpoint with the few new pages. If the log still grows beyond ``blocking_checkpoint``, the
  thread syncs both files and copies the last pages while it holds the ``gate``. Writers then wait for about
  one commit. If writers are faster than the disk, the rest never becomes small. From ``stalling_checkpoint``
  on they wait until everything is copied. Those of the server then wait from the beginning of the copy, so
  that the log is never much longer.

A log restarts with the next transaction after all of it was copied. SQLite then cuts the file, and syncs the
new header. Without that sync, old and new frames could look like one log after a loss of power. The thread
makes this transaction while it holds the gate, so that the event loop does neither.

A reader in another process (a backup) keeps the log from restarting until the reader is done.

A failed checkpoint loses nothing, because everything is still in the log. It is repeated. A failed *sync* is
final. The kernel may have dropped the data, and a second sync would succeed without it. From then on
``broken`` has the error, every sync fails, and there are no more checkpoints. SQLite verifies the log's
checksums only when it opens the file, so the file must be opened again.

With ``sync="off"`` nothing is synced.

**Preallocation.** Written pages need their place in the main file at the next checkpoint. If the disk is full
by then, the log can neither be copied nor grow. Nothing could be written any more, not even the ends of jobs
that would free space. So a group is only accepted if the main file has blocks for all pages. The blocks are
allocated behind the file's end (fallocate, KEEP_SIZE), so that its length stays as SQLite set it. Where
fallocate does not exist (not Linux, or not on that file system), nothing is reserved.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sqlite3
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Final, Literal, TypeAlias

from gearflow.stores.sqlite.files import sync_names
from gearflow.stores.sqlite.schema import PAGE
from gearflow.stores.sqlite.tuning import Tuning

_STEP: Final = 1 << 20  # bytes
_KEEP_SIZE: Final = 1
_NOT_THERE: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM)


class Preallocator:
    """Reserves blocks for the main file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._bytes = os.fstat(fd).st_size
        self._is_possible = sys.platform == "linux"

    def reserve(self, pages: int) -> None:
        """Reserve blocks for so many pages.

        Raises:
            OSError: The disk is full.
        """
        if pages * PAGE > self._bytes:
            end = pages * PAGE // _STEP * _STEP + _STEP
            self.allocate(self._bytes, end)
            self._bytes = end

    def reserve_again(self) -> None:
        """Reserve the blocks again after a checkpoint, in which SQLite cuts the file behind its last page."""
        with suppress(OSError):  # the next group fails if the space is taken
            self.allocate(os.fstat(self._fd).st_size, self._bytes)

    def allocate(self, start: int, end: int) -> None:
        """Reserve a range of bytes. Raises OSError."""
        if not self._is_possible or end <= start:
            return
        offset, size = ctypes.c_int64(start), ctypes.c_int64(end - start)
        if _libc().fallocate(self._fd, _KEEP_SIZE, offset, size) == 0:
            return
        code = ctypes.get_errno()
        if code in _NOT_THERE:
            self._is_possible = False
        elif code != errno.EINTR:
            raise OSError(code, os.strerror(code))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


Sync: TypeAlias = Literal["always", "batch", "off"]

_PASSES: Final = 4  # checkpoints after which the rest is small, or never will be
_PAGE: Final = PAGE + 24  # bytes of log


class WriteAheadLog:
    """The descriptors of an open database. Owns them, and the checkpoint thread."""

    def __init__(
        self, path: Path, sync: Sync, tuning: Tuning, connect: Callable[[], sqlite3.Connection]
    ) -> None:
        """Open the main file, and create it if it is missing.

        Do this before SQLite opens the file, and call ``close`` after SQLite has closed it. SQLite's locks
        belong to the process, and closing any descriptor of the file releases them.

        Raises:
            OSError: The file cannot be opened.
        """
        self._path = path
        self._sync: Sync = sync
        self._tuning = tuning
        self._connect = connect
        self.main_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.space = Preallocator(self.main_fd)
        self._log_fd: int | None = None
        self.gate = threading.Lock()
        """Held while a transaction is written. A checkpoint that holds it can copy the whole log."""
        self.broken: OSError | None = None
        """The error of a failed sync. The disk may miss written data, whatever later syncs report."""
        self._syncing = threading.Lock()
        self._stopped = False
        self._checkpointer: threading.Thread | None = None
        self._length_copied = 0  # bytes of log at the last checkpoint
        self._length_tried = 0  # the same, also of a checkpoint that failed

    def opened(self) -> None:
        """Open the log, which exists once SQLite has opened the file, and make its name durable.

        Raises:
            OSError: The name may not survive a loss of power.
        """
        self._log_fd = os.open(f"{self._path}-wal", os.O_RDWR | os.O_CLOEXEC)
        if self._sync != "off":
            sync_names(self._path.parent)

    def sync(self) -> None:
        """Make everything written durable, and start a checkpoint if the log is long. In any thread.

        Raises:
            OSError: Written data may not survive a loss of power. See ``broken``.
        """
        with self._syncing:
            if self._log_fd is None or self._stopped:
                return
            self._check_unbroken(self.check_names)
            if self._sync != "off":
                self._sync_file(self._log_fd)
            length = self.length()
            if length < self._tuning.checkpoint:
                self._length_copied = 0
            elif (
                abs(length - self._length_copied) > self._tuning.checkpoint / 2
                and not self._is_checkpointing()
            ):
                self._checkpointer = threading.Thread(target=self.copy, name="gearflow-checkpoint")
                self._checkpointer.start()

    def check_names(self) -> None:
        """Check that both files still have their names. If not, they may end with their last descriptors.

        Raises:
            FileNotFoundError: One has not.
        """
        for name, fd in ((self._path.name, self.main_fd), (f"{self._path.name}-wal", self._log_fd)):
            path = self._path.with_name(name)
            try:
                is_there = fd is None or os.path.samestat(path.stat(), os.fstat(fd))
            except OSError as error:
                is_there = not isinstance(error, FileNotFoundError)  # else it cannot be known
            if not is_there:
                raise FileNotFoundError(errno.ENOENT, "the file has lost its name", str(path))

    def is_behind(self) -> bool:
        """Whether a checkpoint should end before the log grows much more. It does not wait for a reader."""
        return self._is_longer_than(2 * self._tuning.checkpoint)

    def is_full(self) -> bool:
        """As ``is_behind``: whether one must end before the log grows at all."""
        return self._is_longer_than(self._tuning.stalling_checkpoint)

    def _is_longer_than(self, most: int) -> bool:
        length = self.length()
        return (
            self.broken is None
            and length > most
            and length - self._length_tried > self._tuning.checkpoint / 2
        )

    def length(self) -> int:
        """Bytes of the log's file. The log itself may be shorter."""
        assert self._log_fd is not None
        return os.fstat(self._log_fd).st_size

    def _is_checkpointing(self) -> bool:
        return self._checkpointer is not None and self._checkpointer.is_alive()

    def join(self) -> None:
        """Wait for the end of a checkpoint in progress."""
        if self._checkpointer is not None:
            self._checkpointer.join()

    def stop(self) -> None:
        """Wait for the other threads. No sync or checkpoint starts after this."""
        with self._syncing:
            self._stopped = True
            self.join()

    def close(self) -> None:
        """Close the files, after SQLite has."""
        for fd in (self._log_fd, self.main_fd):
            if fd is not None:
                os.close(fd)

    def copy(self) -> None:
        """Copy the log into the main file. Does nothing if that fails."""
        try:
            with suppress(sqlite3.Error, OSError):  # the log still has everything
                connection = self._connect()
                try:
                    self._copy_by(connection)
                finally:
                    connection.close()
        finally:
            self._length_tried = self.length()

    def _copy_by(self, connection: sqlite3.Connection) -> None:
        before = copied = 0
        for _ in range(_PASSES):
            before, copied = copied, checkpoint(connection)
            self.space.reserve_again()
            length = self._length_copied = self.length()
            if length < self._tuning.checkpoint:
                return  # it has restarted
            if length - copied < _PAGE:
                self._restart(connection)
                return
        if self._must_block_writers(self.length(), copied, has_progress=copied > before):
            self._copy_with_gate(connection)

    def _restart(self, connection: sqlite3.Connection) -> None:
        """Restart the log by a transaction that changes nothing."""
        with self.gate:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE meta SET crc = crc")
            connection.execute("COMMIT")

    def _must_block_writers(self, length: int, copied: int, *, has_progress: bool) -> bool:
        """Whether the log is so long that the rest must be copied while writers wait."""
        tuning = self._tuning
        is_rest_small = length - copied < tuning.checkpoint / 4
        is_stalling = length > tuning.stalling_checkpoint and has_progress  # no reader prevents it
        return length > tuning.blocking_checkpoint and (is_rest_small or is_stalling)

    def _copy_with_gate(self, connection: sqlite3.Connection) -> None:
        if self._sync != "off":  # so that nearly nothing is left to sync while writers wait
            assert self._log_fd is not None
            self._sync_file(self._log_fd)
            self._sync_file(self.main_fd)
        with self.gate:
            checkpoint(connection)
        self._restart(connection)
        self.space.reserve_again()

    def _sync_file(self, fd: int) -> None:
        self._check_unbroken(partial(_fdatasync, fd))

    def _check_unbroken(self, step: Callable[[], None]) -> None:
        """Do a step after which written data survives, unless one has failed before."""
        if self.broken is not None:
            raise self.broken
        try:
            step()
        except OSError as error:
            self.broken = error
            raise


def checkpoint(connection: sqlite3.Connection) -> int:
    """Copy the log while others write. Returns the bytes at the log's beginning that are copied."""
    _, _, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return int(copied) * _PAGE


def _fdatasync(fd: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # its fsync does not reach the disk
    else:
        os.fdatasync(fd)
