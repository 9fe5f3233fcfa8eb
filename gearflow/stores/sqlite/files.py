"""One server at a time owns a file, and what it last knew of it outlives it.

Beside the file lies another, with ``-lock`` at the end of its name, which the owner holds locked (flock:
the kernel lets go of it when the process ends, however it ends). In it stands, for people and for the next
owner::

    pid 4242 since 2030-01-01T00:00:00Z
    store 0badcafe boot 6f1c0f0e-...
    groups 00000000000000000117 synced 00000000000000000101

The last line is what makes a log that was cut at rest noticeable, which to SQLite is a log that just ends
there: so many groups of changes had been written, and so many synced. If the machine has not been restarted
since, all that was written must be there; else all that was synced. After an orderly end it is all in
the main file, and the line says 0: then another copy of the file may be put in place.

The file is never removed: between two who open it, one could hold a lock on a name that is no longer there.

Names of files, which can be lost with the power although what is in the files is not.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from pathlib import Path
from typing import Final

from gearflow.errors import StoreError
from gearflow.stores.sqlite.errors import failed


def sync_names(folder: Path) -> None:
    """Have the names in a folder survive.

    Raises:
        OSError: They may not; some file systems cannot do it.
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


class FileLock:
    """The right to a file, until ``release``; and what the last owner left."""

    def __init__(self, path: Path) -> None:
        """Take the file.

        Raises:
            StoreError: Another process has it, or the lock cannot be written beside it.
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
        """Of the store that the last owner had."""
        self.rebooted = text is not None and text[4] != _boot()
        """Whether the machine was restarted since."""
        self.orderly = text is None or int(text[5]) == 0
        """Whether the last owner had put all into the main file."""
        self.expected = 0 if text is None else int(text[6 if self.rebooted else 5])
        """As many groups of changes must be there; 0: nothing is known."""
        self._counts_at = 0

    def begin(self, name: bytes, groups: int) -> None:
        """This process is the owner, and finds so many groups of changes."""
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
        """So many groups of changes are in the log now."""
        os.pwrite(self._fd, b"%020d" % groups, self._counts_at + 7)

    def synced(self, groups: int) -> None:
        """So many groups of changes would survive a loss of power."""
        os.pwrite(self._fd, b"%020d" % groups, self._counts_at + 35)

    def release(self, *, orderly: bool) -> None:
        """Let go of it; ``orderly`` if all that was written is in the main file."""
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
    """An identity of the machine's present run; where there is none, one that equals no other."""
    try:
        return _BOOT.read_bytes().strip()
    except OSError:
        return os.urandom(8).hex().encode()
