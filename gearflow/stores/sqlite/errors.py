"""What SQLite and the kernel report, as ``StoreError``: the file, what happened, what to do about it."""

from __future__ import annotations

import errno
import shlex
import sqlite3
from pathlib import Path
from typing import Final

from gearflow.errors import StoreError

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFull(StoreError):
    """There is no room. (No class of its own for callers: to them it is like every refusal.)"""


def remedy(path: Path) -> str:
    """What to do about a file that cannot be read as a whole."""
    folder = shlex.quote(str(path.parent))
    return (
        f"stop the server and run 'gearflow server --recover --data {folder}', which keeps what can be read"
    )


def damaged(path: Path, what: str) -> StoreError:
    """The file does not hold what was written to it."""
    return StoreError(f"{path} is damaged: {what}; {remedy(path)}")


def failed(path: Path, error: sqlite3.Error | OSError) -> StoreError:
    """What to raise for an error of SQLite's or of the kernel's."""
    if isinstance(error, OSError):
        return _failed_in_the_kernel(path, error)
    name = getattr(error, "sqlite_errorname", "")  # not there where the module itself complains
    if name == "SQLITE_FULL":
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
    """The disk did not take what was written; whatever it says later, that may not be there."""
    return StoreError(
        f"{path} could not be synced ({error.strerror or error}): a loss of power now may take what was "
        "written before; restart the server when the disk is sound"
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
