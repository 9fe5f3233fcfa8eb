"""Copies a store's file while a server works on it."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final

from gearflow.errors import StoreError
from gearflow.stores.sqlite import schema
from gearflow.stores.sqlite.errors import damaged, failed
from gearflow.stores.sqlite.files import sync_names
from gearflow.stores.sqlite.integrity import check_file, check_records, checked_jobs, checked_settings
from gearflow.stores.sqlite.recovery import check_not_planned
from gearflow.stores.sqlite.schema import DamagedMetadata, Metadata
from gearflow.stores.sqlite.tuning import Tuning

_PAGES: Final = 16384  # that are copied at a time: 64 MiB


def backup(path: str | Path, target: str | Path) -> int:
    """Copy a store as it is now. A server can continue to use it meanwhile.

    The copy is one file and complete once it has its name. It is marked as a copy, so that a server that
    starts with it gives other numbers to new jobs than the original does. It is checked as when a server
    starts, so that nobody relies on the copy of a damaged file. Such a copy is kept, for it may be the last.

    Returns:
        The bytes of the copy.

    Raises:
        StoreError: There is no store, its recovery is not finished, the target exists, or the copy failed
            and was removed. Or the store is damaged, and so is the copy.
    """
    path, target = Path(path).resolve(), Path(target).absolute()
    if not path.is_file():
        raise StoreError(f"there is no file {path} to copy")
    check_not_planned(path)
    if target.exists() or target.is_symlink():
        raise StoreError(f"{target} is there already; name another file, or remove it")
    partial = target.with_name(f"{target.name}-partial")
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise StoreError(f"{partial} is there already, of a copy that did not end; remove it") from None
    except OSError as error:
        raise failed(target, error) from error
    try:
        fault = _copy(path, partial)
        publish(partial, target)
        if fault is not None:
            raise StoreError(f"{fault}. The copy {target} has the same damage")
        return target.stat().st_size
    except OSError as error:
        raise failed(target, error) from error
    finally:
        for suffix in ("", "-journal"):
            partial.with_name(partial.name + suffix).unlink(missing_ok=True)


def _copy(path: Path, partial: Path) -> StoreError | None:
    """Copy the file. Returns its damage."""
    at = path  # the file that an error is about
    try:
        source = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            if source.execute("PRAGMA application_id").fetchone()[0] != schema.APPLICATION_ID:
                raise StoreError(f"{path} is not a store's file; name the folder of a server with --data")
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM meta").fetchone()  # starts the snapshot
            at = partial
            copy = sqlite3.connect(partial, isolation_level=None)
            try:
                source.backup(copy, pages=_PAGES)
                source.execute("ROLLBACK")  # a reader keeps the server's log from restarting
                _mark(path, copy)
                return _damage(path, partial, copy)
            finally:
                copy.close()
        finally:
            source.close()
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        raise failed(path if name.startswith("SQLITE_CORRUPT") else at, error) from error


def _mark(path: Path, copy: sqlite3.Connection) -> None:
    """Mark the file as a copy."""
    copy.execute("PRAGMA journal_mode = DELETE").fetchone()  # so that it is one file
    copy.execute("PRAGMA synchronous = FULL")
    try:
        metadata = Metadata.read(copy)
    except DamagedMetadata:
        raise damaged(path, "the table meta is not what was written") from None
    metadata.copied = 1
    metadata.update(copy)


def _damage(path: Path, partial: Path, copy: sqlite3.Connection) -> StoreError | None:
    """Check the copy. Returns the damage that it has from its original."""
    try:
        metadata = Metadata.read(copy)
        with partial.open("rb") as file:
            check_file(path, copy, file.fileno(), Tuning())
        check_records(path, copy, metadata)
        checked_settings(path, copy, metadata)
        for _ in checked_jobs(path, copy, metadata):
            pass
    except sqlite3.Error as error:
        return failed(path, error)
    except StoreError as error:
        return error
    return None


def publish(partial: Path, target: Path) -> None:
    """Give the file its name, unless the name is taken."""
    descriptor = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(partial, target)
    except FileExistsError:
        raise StoreError(f"{target} is there already; name another file, or remove it") from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        partial.rename(target)  # a file system without links
    with suppress(OSError):  # not every file system can
        sync_names(target.parent)
