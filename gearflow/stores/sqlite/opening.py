"""A file, opened by SQLite as a store's; or the reason why it is not one."""

from __future__ import annotations

import os
import secrets
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final

from gearflow.errors import StoreError
from gearflow.stores.sqlite import schema
from gearflow.stores.sqlite.errors import damaged, remedy
from gearflow.stores.sqlite.files import FileLock
from gearflow.stores.sqlite.schema import DamagedMetadata, Metadata
from gearflow.stores.sqlite.wal import SHORT, Sync

JUMP: Final = 1 << 32
"""Numbers that are left out where it is not known how many have been given to jobs."""

EMPTY: Final = 64 << 20
"""A file with at least this many bytes of free pages, and fewer in use, is rewritten when it is opened."""

_MAGIC: Final = b"SQLite format 3\0"
_BUSY: Final = 5.0  # seconds for which to wait for a lock; no program but a backup takes any


def connect(path: Path, sync: Sync) -> sqlite3.Connection:
    """A connection to a store's file. Use it in one thread at a time."""
    connection = sqlite3.connect(path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA journal_size_limit = {SHORT}")
        connection.execute(f"PRAGMA synchronous = {'OFF' if sync == 'off' else 'NORMAL'}")
        connection.execute("PRAGMA cache_size = -16384")  # KiB
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA secure_delete = OFF")
    except BaseException:
        connection.close()
        raise
    return connection


def check_head(path: Path, fd: int, owner: FileLock) -> None:
    """Look at the first bytes of a file before SQLite does.

    Raises:
        StoreError: It is something else, or is not any more what it was.
    """
    head = os.pread(fd, len(_MAGIC), 0)
    if head == _MAGIC:
        return
    if owner.name is not None:
        if head:
            raise damaged(path, "it does not begin as an SQLite file does")
        raise StoreError(
            f"{path} is empty, but it was not: {owner.lock_path.name} tells of a store in it; "
            f"put a copy of it back, or remove {owner.lock_path.name} as well to start empty"
        )
    if head:
        raise StoreError(f"{path} is not an SQLite file; name another file, or move this one away")


def make_ready(path: Path, connection: sqlite3.Connection) -> None:
    """Create what is not there yet, and bring a file of an earlier version to this one.

    Raises:
        StoreError: It is another application's, or of a later version.
        sqlite3.Error: It cannot be read or written.
    """
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    found = schema.version_of(connection)
    is_new = not application and not found and not schema.tables_of(connection)
    if not is_new and application != schema.APPLICATION_ID:
        raise StoreError(
            f"{path} is a file of another application (its application_id is {application:#x}); "
            "name another file"
        )
    if found > schema.version():
        raise StoreError(
            f"{path} has version {found}, and this gearflow knows versions up to {schema.version()}; "
            "use the gearflow that wrote it, or a later one, or another file"
        )
    if is_new:
        connection.execute(f"PRAGMA page_size = {schema.PAGE}")
    if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise StoreError(f"{path} cannot have a write-ahead log there; put it on a local disk")
    schema.migrate(connection)
    if schema.tables_of(connection) != schema.expected_tables():
        raise damaged(path, "its tables are not those of a store")


def take_stock(path: Path, connection: sqlite3.Connection, owner: FileLock) -> Metadata:
    """The account of a file, once it is known to be whole at its end and at that of its log.

    Raises:
        StoreError: It is not.
        sqlite3.Error: It cannot be read.
    """
    try:
        account = Metadata.read(connection)
    except DamagedMetadata:
        raise damaged(path, "the table meta is not what was written") from None
    if owner.name == account.name and account.groups < owner.expected:
        raise StoreError(
            f"{path}: the last {owner.expected - account.groups} groups of changes are not there, as if "
            f"{path.name}-wal had been cut or removed; {remedy(path)}; if that is meant, for you put a copy "
            f"of the file back, remove {owner.lock_path.name}"
        )
    _shrink(connection)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if owner.rebooted and not owner.orderly:
        account.reserved += JUMP  # the last reservations may not have reached the disk
    if account.copied:
        account.reserved += JUMP * (1 + secrets.randbelow(1 << 16))  # so that two copies differ, too
        account.copied = 0
    return account


def _shrink(connection: sqlite3.Connection) -> None:
    """Give back what is free, where that is much and the rest is little."""
    pages, free, page = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    if free * page >= EMPTY >= (pages - free) * page:
        with suppress(sqlite3.Error):  # no room for that, or damaged, as will soon be seen
            connection.execute("VACUUM")
