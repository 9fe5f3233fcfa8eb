"""A server's file with many jobs."""

from collections.abc import Iterator
from pathlib import Path

from gearflow.broker.storage import StoredJob
from gearflow.stores import SqliteStore


def jobs(count: int) -> Iterator[StoredJob]:
    for number in range(1, count + 1):
        yield StoredJob(number, b"work", b"", 1, 1e9, 0.0, None, b"", 0, 0, b"{}")


def filled(folder: Path, count: int) -> Path:
    """A folder with the file of a server that has so many jobs."""
    store = SqliteStore(folder / "gearflow.db", sync="off")
    assert list(store.load().jobs) == []
    store.write(list(jobs(count)))
    store.close()
    return folder
