"""Errors of SQLite and the kernel as ``StoreError``, with the file, the fault and the remedy."""

from __future__ import annotations

import errno
import shlex
import sqlite3
from pathlib import Path
from typing import Final

from gearflow.errors import StoreError

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFull(StoreError):
    """The disk is full. (Not public, because callers treat it like every refusal.)"""


class DamagedFile(StoreError):
    """The file does not hold what was written. (Not public, for the same reason.)"""


def hint(path: Path) -> str:
    """The remedy for a file that cannot be read as a whole."""
    folder = shlex.quote(str(path.parent))
    return (
        f"stop the server and run 'gearflow server --recover --data {folder}', which keeps what can be read"
    )


def damaged(path: Path, what: str) -> DamagedFile:
    """The error for a file that does not hold what was written to it."""
    return DamagedFile(f"{path} is damaged: {what}; {hint(path)}")


def failed(path: Path, error: sqlite3.Error | OSError) -> StoreError:
    """The ``StoreError`` for an error of SQLite or of the kernel."""
    if isinstance(error, OSError):
        return _failed_in_the_kernel(path, error)
    name = getattr(error, "sqlite_errorname", "")  # missing in errors of the module itself
    if name in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"):  # the latter at the start, beside the file
        return _full(path)
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or "decode to UTF-8" in str(error):
        return damaged(path, str(error))
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        return StoreError(
            f"{path} cannot be opened for writing ({error}); may this user write the file and its directory?"
        )
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")):
        return StoreError(f"{path} is locked by another program ({error}); end that program")
    if name.startswith("SQLITE_IOERR"):
        return StoreError(
            f"{path} cannot be read or written ({name}: {error}); "
            "is the disk full or broken? see the system's log"
        )
    return StoreError(f"{path}: {name or type(error).__name__}: {error}")


def not_synced(path: Path, error: OSError) -> StoreError:
    """The error for a failed sync."""
    if isinstance(error, FileNotFoundError):
        return StoreError(
            f"{error.filename} was moved, removed or replaced while the server uses it, so its jobs may be "
            "lost when the server ends; move it back and run 'gearflow server reopen', or let the workers "
            "finish the jobs and restart the server"
        )
    return StoreError(
        f"{path} could not be synced ({error.strerror or error}): a loss of power now may take what was "
        "written before; repair the disk, then run 'gearflow server reopen' or restart the server"
    )


def _full(path: Path) -> StoreError:
    return DiskFull(
        f"{path} cannot grow: the disk or the quota is full; make room, nothing else needs to be done"
    )


def _failed_in_the_kernel(path: Path, error: OSError) -> StoreError:
    if error.errno in _FULL:
        return _full(path)
    if error.errno == errno.EISDIR:
        return StoreError(f"{path} is a directory; name a file in it")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return StoreError(f"{path.parent} is not a directory; create it, or name another place")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(
            f"{path} cannot be opened for writing ({error.strerror}); "
            "may this user write the file and its directory?"
        )
    return StoreError(f"{path}: {error.strerror or error}")
