"""The write-ahead log: made to survive a loss of power, and kept short, without stopping those who write.

The loop's connection appends groups to the log and never waits for the disk (``synchronous=NORMAL`` does not
sync at commit; ``wal_autocheckpoint=0`` never copies the log into the main file). Both are done here, in
other threads, where the GIL is free:

* ``sync`` syncs the log by a descriptor of its own. All that had been written when it was called is then
  there after a loss of power: it lies in the log, or, if the log restarted meanwhile, in the main file, for
  a log restarts only after SQLite has copied all of it there and synced that.
* Once the log is longer than ``LONG``, a thread copies it to the main file (a PASSIVE checkpoint on a
  connection of its own, during which others write on). The log restarts with the next transaction that
  finds *all* of it copied. Under constant load there is always something new at its end, so the thread
  repeats, each time with the little that has come meanwhile. If that does not suffice until the log is
  longer than ``TOO_LONG``, it syncs both files, and then copies the last few pages while it holds the
  ``gate``, at which a writer waits: for about as long as the disk takes for one commit. Only where more is
  written than the disk can take does the rest not become small; then, from ``FAR_TOO_LONG`` on, writers wait
  until it is copied, however long that takes: something must hold them back.

SQLite makes one sync of its own on the loop's thread, of the header of a log that restarts (without it,
new and old frames could be taken for one log after a loss of power). That is once in ``LONG`` bytes.

A reader in another process (a backup) keeps the log from restarting until it is done. Nobody waits for
it.

A checkpoint that fails is no loss, as all is still in the log; it is tried again. A failed *sync* is: the
kernel may have dropped what it could not write, and a second try would succeed without it. From then on
``broken`` says so, every further sync fails, and the log is not copied any more: SQLite looks at its
checksums only when it opens the file, so the file must be opened again.

With ``sync="off"`` nothing is ever synced.

Preallocator on the disk for the main file, before its pages are in it.

What is written is in the log first, and needs its place in the main file when it is copied there. If the disk
is full by then, the log can neither be copied nor grow, and nothing can be written any more: not even that
jobs are done, which would make room. So a group is only accepted if the main file has its blocks for all
pages that there are; then the log can always be copied, and restart in the space that it has.

The blocks are allocated behind the file's end (fallocate, KEEP_SIZE), so that its length stays what SQLite
made it. Where that does not exist (not on Linux, or not on that file system), nothing is reserved.
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
from functools import cache
from pathlib import Path
from typing import Final, Literal, TypeAlias

from gearflow.stores.sqlite.files import sync_names
from gearflow.stores.sqlite.schema import PAGE

_STEP: Final = 1 << 20  # bytes
_KEEP_SIZE: Final = 1
_NOT_THERE: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM)


class Preallocator:
    """The blocks of a file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._bytes = os.fstat(fd).st_size
        self._is_possible = sys.platform == "linux"

    def make(self, pages: int) -> None:
        """Have room for so many pages.

        Raises:
            OSError: There is none.
        """
        if pages * PAGE > self._bytes:
            end = pages * PAGE // _STEP * _STEP + _STEP
            self._allocate(self._bytes, end)
            self._bytes = end

    def make_again(self) -> None:
        """When the log is copied, SQLite cuts the file behind the pages that are in it then."""
        with suppress(OSError):  # if it is not there any more, the next page will tell
            self._allocate(os.fstat(self._fd).st_size, self._bytes)

    def _allocate(self, start: int, end: int) -> None:
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

LONG: Final = 16 << 20
"""Bytes of log from which on it is copied into the main file."""

TOO_LONG: Final = 64 << 20
"""Bytes of log from which on writers may have to wait for the end of that."""

FAR_TOO_LONG: Final = 256 << 20
"""Bytes of log from which on they have to, even if that takes longer."""

SHORT: Final = 4 << 20
"""Bytes to which the log's file is cut when it restarts."""

_PASSES: Final = 4  # until the rest is small, or will not be
_PAGE: Final = PAGE + 24  # bytes of log


class WriteAheadLog:
    """The two files of an open database, seen from the disk."""

    def __init__(self, path: Path, sync: Sync, connect: Callable[[], sqlite3.Connection]) -> None:
        """Open the main file, and create it if there is none.

        This must come before SQLite opens it, and ``close`` after SQLite has closed it: its locks on the
        file are the process's, and closing any descriptor of the file lets go of them.

        Raises:
            OSError: It cannot be opened.
        """
        self._path = path
        self._sync: Sync = sync
        self._connect = connect
        self.main_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.room = Preallocator(self.main_fd)
        self._log_fd: int | None = None
        self.gate = threading.Lock()
        """Held while a transaction is written, so that the log can be seen to its end."""
        self.broken: OSError | None = None
        """A sync that failed: what was written may not be on the disk, whatever later ones say."""
        self._syncing = threading.Lock()
        self._stopped = False
        self._copier: threading.Thread | None = None
        self._copied_to = 0  # bytes of log when it was last copied

    def opened(self) -> None:
        """SQLite has opened the file, and so the log is there: its name must survive, too.

        Raises:
            OSError: It does not.
        """
        self._log_fd = os.open(f"{self._path}-wal", os.O_RDWR | os.O_CLOEXEC)
        if self._sync != "off":
            sync_names(self._path.parent)

    def sync(self) -> None:
        """Have what was written survive, and the log be shortened if it is long. In any thread.

        Raises:
            OSError: It may not survive; see ``broken``.
        """
        with self._syncing:
            if self._log_fd is None or self._stopped:
                return
            if self._sync != "off":
                self._sync_file(self._log_fd)
            length = self.length()
            if length < LONG:
                self._copied_to = 0
            elif abs(length - self._copied_to) > LONG / 2 and not self._is_copying():
                self._copier = threading.Thread(target=self.copy, name="gearflow-checkpoint")
                self._copier.start()

    def length(self) -> int:
        """Bytes of the file; what is in use of it may be less."""
        assert self._log_fd is not None
        return os.fstat(self._log_fd).st_size

    def _is_copying(self) -> bool:
        return self._copier is not None and self._copier.is_alive()

    def join(self) -> None:
        """Wait for the end of a copying that goes on."""
        if self._copier is not None:
            self._copier.join()

    def stop(self) -> None:
        """Wait for what goes on in other threads; nothing begins there any more."""
        with self._syncing:
            self._stopped = True
            self.join()

    def close(self) -> None:
        """Close the files, after SQLite has."""
        for fd in (self._log_fd, self.main_fd):
            if fd is not None:
                os.close(fd)

    def copy(self) -> None:
        """Copy the log into the main file; if that fails, it was not."""
        with suppress(sqlite3.Error, OSError):  # see above; and if the disk is broken, others will tell
            connection = self._connect()
            try:
                self._copy_by(connection)
            finally:
                connection.close()

    def _copy_by(self, connection: sqlite3.Connection) -> None:
        before = copied = 0
        for _ in range(_PASSES):
            before, copied = copied, checkpoint(connection)
            self.room.make_again()
            length = self._copied_to = self.length()
            if length < LONG or length - copied < _PAGE:
                return  # it has restarted, or will with the next transaction
        is_little = self.length() - copied < LONG / 4
        is_possible = copied > before  # no reader is in the way
        if self.length() > TOO_LONG and (is_little or (self.length() > FAR_TOO_LONG and is_possible)):
            if self._sync != "off":  # so that nearly nothing is left to sync in the gate
                assert self._log_fd is not None
                self._sync_file(self._log_fd)
                self._sync_file(self.main_fd)
            with self.gate:
                checkpoint(connection)
            self.room.make_again()

    def _sync_file(self, fd: int) -> None:
        if self.broken is not None:
            raise self.broken
        try:
            _fdatasync(fd)
        except OSError as error:
            self.broken = error
            raise


def checkpoint(connection: sqlite3.Connection) -> int:
    """Copy what is in the log now; up to which byte of it all is copied. Meanwhile, others write on."""
    _, _, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return int(copied) * _PAGE


def _fdatasync(fd: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # its fsync does not reach the disk
    else:
        os.fdatasync(fd)
