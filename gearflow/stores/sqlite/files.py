"""The lock of a store's file, with what the last owner knew of the file; and durable file names.

One server at a time owns a file. It holds a lock (flock) on another file beside it, with ``-lock`` at the end
of its name. The kernel releases the lock when the process ends. The lock file tells people and the next
owner::

    pid 4242 since 2030-01-01T00:00:00Z
    store 0badcafe boot 6f1c0f0e-...
    groups 00000000000000000117 synced 00000000000000000101

The last line reveals a log that was cut, which SQLite takes for a log that ends there. It has the groups of
changes written and synced so far. If the machine has not been restarted since, all written groups must be
there, else all synced ones. After an orderly end everything is in the main file and the line has zeros, so
you can replace the file by another copy.

The lock file is never removed. Else one of two servers could hold the lock on a removed name.

**The database itself** is locked as well, on Linux. Somebody may remove the lock file, and a hard link gives
the database a second name with a lock file of its own. Two servers would then write two logs for one file.
The lock is on a byte that SQLite does not lock. It belongs to the open file (OFD), not to the process, so it
stays when SQLite closes another descriptor of the file. flock would not do, because NFS turns it into a lock
of all bytes, which keeps SQLite out.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from gearflow.errors import StoreError
from gearflow.stores.sqlite.errors import failed
from gearflow.stores.sqlite.schema import PAGE


def sync_names(folder: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        OSError: They may not survive a loss of power. Some file systems cannot do this.
    """
    directory = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


_TEXT: Final = re.compile(
    rb"pid (\d+) since (\S+) *\nstore ([0-9a-f]{8}) boot (\S+) *\ngroups (\d{20}) synced (\d{20})\n"
)
_PID: Final = re.compile(rb"pid (\d+) since (\S+)")
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


_OWNED: Final = (1 << 30) + PAGE
"""The byte of the database that its owner locks. SQLite locks only the first 512 bytes of this gigabyte."""


def lock_database(path: Path, fd: int) -> None:
    """Lock the database in addition to its lock file, until ``fd`` is closed.

    Does nothing if the system or the file system has no such locks.

    Args:
        path: The database.
        fd: The database, open for reading and writing.

    Raises:
        StoreError: Another server has it, or a recovery.
    """
    if sys.platform != "linux":
        return
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, _OWNED, 1, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise StoreError(
                f"{path} is in use by {_owner(fd)}, which has it under another name (a hard link), or whose "
                "lock file was removed; end that server, or give this one a file of its own"
            ) from error


def _owner(fd: int) -> str:
    """The process that has locked a database, if the system shows it."""
    lock = re.compile(rb"OFDLCK .* WRITE .*:%d %d " % (os.fstat(fd).st_ino, _OWNED))
    for file in Path("/proc").glob("[0-9]*/fdinfo/*"):
        with suppress(OSError):  # of another user, or closed
            if lock.search(file.read_bytes()):
                return f"process {file.parts[2]}"
    return "another process"


class FileLock:
    """The exclusive right to a file until ``release``, and the state that the last owner left."""

    def __init__(self, path: Path) -> None:
        """Lock the file.

        Raises:
            StoreError: Another process owns the file, or the lock file cannot be written.
        """
        self._path = path
        self.lock_path = path.with_name(path.name + "-lock")
        try:
            self._fd = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise failed(path, error) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = self._holder()
            os.close(self._fd)
            raise StoreError(
                f"{path} is in use by {holder}; end that server, or give this one a file of its own"
            ) from error
        text = _TEXT.match(os.pread(self._fd, 4096, 0))
        self.name: bytes | None = text[3] if text else None
        """The name of the last owner's store."""
        self.rebooted = text is not None and text[4] != _boot()
        """Whether the machine was restarted since the last owner."""
        self.orderly = text is None or int(text[5]) == 0
        """Whether the last owner left everything in the main file."""
        self.expected = 0 if text is None else int(text[6 if self.rebooted else 5])
        """Groups of changes that must be there. 0 if unknown."""
        self._counts_at = 0

    def begin(self, name: bytes, groups: int) -> None:
        """Write this process as the owner of a file with so many groups of changes."""
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()).encode()
        head = b"pid %d since %s\nstore %s boot %s\n" % (os.getpid(), since, name, _boot())
        try:
            os.pwrite(self._fd, head + _counts(groups, groups), 0)
            os.ftruncate(self._fd, len(head) + len(_counts(0, 0)))
        except OSError as error:
            raise failed(self.lock_path, error) from error
        self._counts_at = len(head)

    def expect_nothing(self, name: bytes) -> None:
        """Note that another file will replace this one, of which no group of changes is expected."""
        self.begin(name, 0)
        os.fsync(self._fd)

    def written(self, groups: int) -> None:
        """Note the number of groups in the log."""
        os.pwrite(self._fd, b"%020d" % groups, self._counts_at + 7)

    def synced(self, groups: int) -> None:
        """Note the number of groups that survive a loss of power."""
        os.pwrite(self._fd, b"%020d" % groups, self._counts_at + 35)

    def release(self, *, orderly: bool) -> None:
        """Release the file. ``orderly`` means that the main file has everything written."""
        try:
            if orderly and self._counts_at:
                os.pwrite(self._fd, _counts(0, 0), self._counts_at)
        finally:
            os.close(self._fd)

    def _holder(self) -> str:
        text = _PID.match(os.pread(self._fd, 4096, 0))
        return f"process {text[1].decode()} since {text[2].decode()}" if text else "another process"


def _counts(groups: int, synced: int) -> bytes:
    return b"groups %020d synced %020d\n" % (groups, synced)


def _boot() -> bytes:
    """The id of this run of the machine. A random one if the system has none."""
    try:
        return _BOOT.read_bytes().strip()
    except OSError:
        return os.urandom(8).hex().encode()
