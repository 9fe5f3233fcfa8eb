"""Opens a store's file with SQLite, or says why it is not one."""

from __future__ import annotations

import os
import secrets
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final

from gearflow.errors import StoreError
from gearflow.stores.sqlite import schema
from gearflow.stores.sqlite.errors import damaged, hint
from gearflow.stores.sqlite.files import FileLock
from gearflow.stores.sqlite.schema import DamagedMetadata, Metadata
from gearflow.stores.sqlite.tuning import Tuning
from gearflow.stores.sqlite.wal import Sync

JUMP: Final = 1 << 32
"""Numbers that are skipped if it is unknown how many have been given to jobs."""

_MAGIC: Final = b"SQLite format 3\0"
BUSY: Final = 5.0  # seconds to wait for a lock, which only a backup takes


def connect(path: Path, sync: Sync, tuning: Tuning | None = None) -> sqlite3.Connection:
    """Connect to a store's file. Use the connection in one thread at a time."""
    connection = sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA journal_size_limit = {(tuning or Tuning()).log_file}")
        connection.execute(f"PRAGMA synchronous = {'OFF' if sync == 'off' else 'NORMAL'}")
        connection.execute("PRAGMA cache_size = -16384")  # KiB
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA secure_delete = OFF")
    except BaseException:
        connection.close()
        raise
    return connection


def check_head(path: Path, fd: int, lock: FileLock) -> None:
    """Check the first bytes of a file before SQLite opens it.

    Raises:
        StoreError: The file is not a store, or is not the store any more that it was.
    """
    head = os.pread(fd, len(_MAGIC), 0)
    if head == _MAGIC:
        return
    if lock.name is not None:
        if head:
            raise damaged(path, "it does not begin as an SQLite file does")
        raise StoreError(
            f"{path} is empty, but it was not: {lock.lock_path.name} names a store in it; "
            f"put a copy of it back, or remove {lock.lock_path.name} as well to start empty"
        )
    if head:
        raise StoreError(f"{path} is not an SQLite file; name another file, or move this one away")


def make_ready(path: Path, connection: sqlite3.Connection) -> None:
    """Create the tables in a new file, and migrate a file of an earlier version.

    Raises:
        StoreError: The file belongs to another application or a later version.
        sqlite3.Error: The file cannot be read or written.
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


def read_metadata(path: Path, connection: sqlite3.Connection, lock: FileLock, tuning: Tuning) -> Metadata:
    """Read the metadata, check that the log is complete, and copy the log into the file.

    Raises:
        StoreError: The metadata is damaged, or the log was cut.
        sqlite3.Error: The file cannot be read.
    """
    try:
        metadata = Metadata.read(connection)
    except DamagedMetadata:
        raise damaged(path, "the table meta is not what was written") from None
    if lock.name == metadata.name and metadata.groups < lock.expected:
        raise StoreError(
            f"{path}: the last {lock.expected - metadata.groups} groups of changes are not there, as if "
            f"{path.name}-wal had been cut or removed; {hint(path)}; if that is meant, for you put a copy "
            f"of the file back, remove {lock.lock_path.name}"
        )
    _shrink(connection, tuning)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if lock.rebooted and not lock.orderly:
        metadata.reserved += JUMP  # the last reservations may not have reached the disk
    if metadata.copied:
        metadata.reserved += JUMP * (1 + secrets.randbelow(1 << 16))  # so that two copies differ as well
        metadata.copied = 0
    return metadata


def _shrink(connection: sqlite3.Connection, tuning: Tuning) -> None:
    """Rewrite the file if most of it is free pages."""
    pages, free, page = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    if free * page >= tuning.vacuum >= (pages - free) * page:
        with suppress(sqlite3.Error):  # the disk is full, or the file is damaged, which is noticed next
            connection.execute("VACUUM")
