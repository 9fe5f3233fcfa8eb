"""Writes copied entries into a new file. It gets its name when all are there."""

from __future__ import annotations

import json
import sqlite3
from bisect import bisect_right
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from gearflow.broker.storage import Paused, Renumbered, Setting, size_of
from gearflow.errors import StoreError
from gearflow.stores.copying.entries import CopyGroup, CopyPhase, CopyProgress, CopySource, composed
from gearflow.stores.sqlite.backup import publish
from gearflow.stores.sqlite.errors import damaged, failed
from gearflow.stores.sqlite.files import FileLock
from gearflow.stores.sqlite.opening import connect, make_ready
from gearflow.stores.sqlite.rows import DamagedRow
from gearflow.stores.sqlite.schema import DamagedMetadata, Metadata, write_renumbered
from gearflow.stores.sqlite.tables import Tables

_LOG = 64 << 20
"""Bytes after which the log is copied into the file."""


class FileTarget:
    """A ``CopyTarget`` that is a new file. Its name is the first eight digits of the copy's UUID."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._partial = self._path.with_name(f"{self._path.name}-partial")
        self._stack = ExitStack()
        self._written = 0
        self.description = str(self._path)
        self.key = str(self._path)

    async def open(self) -> None:
        lock = FileLock(self._path)
        self._stack.callback(lock.release, orderly=False)

    async def close(self) -> None:
        self._stack.close()

    async def begin(self, copy: str, source: CopySource) -> CopyProgress:
        self._name = copy[:8].encode()
        with self._errors():
            if self._path.exists() or self._path.is_symlink():
                if _name_of(self._path) != self._name:
                    raise StoreError(f"{self._path} is there already; name another file, or remove it")
                _remove(self._partial)
                return CopyProgress(CopyPhase.END)
            if not self._partial.exists() or _name_of(self._partial) != self._name:
                _remove(self._partial)
                await self._create(source)
            return self._resume(source)

    async def _create(self, source: CopySource) -> None:
        with closing(connect(self._partial, "batch")) as connection:
            self._partial.chmod(0o600)
            make_ready(self._partial, connection)
            ranges: list[Renumbered] = []
            below = 1  # the first number that is free
            for first, last in await source.ranges():
                ranges.append(Renumbered(source.name, first, last, below - first))
                below += last - first + 1
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE copying (progress TEXT, ranges TEXT)")
            plan = json.dumps([(first, last, add) for _, first, last, add in ranges])
            connection.execute("INSERT INTO copying VALUES (?, ?)", (CopyProgress().text(), plan))
            write_renumbered(connection, composed(source.renumbered, ranges))
            Metadata(self._name, below).insert(connection)
            connection.execute("COMMIT")

    def _resume(self, source: CopySource) -> CopyProgress:
        connection = self._connection = connect(self._partial, "batch")
        self._stack.callback(connection.close)
        metadata = Metadata.read(connection)
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'copying'").fetchall():
            self._publish()
            return CopyProgress(CopyPhase.END)
        progress, plan = connection.execute("SELECT progress, ranges FROM copying").fetchone()
        self._ranges = [Renumbered(source.name, *numbers) for numbers in json.loads(plan)]
        self._tables = Tables(connection, metadata)
        self._tables.expect_results()
        return CopyProgress.of(progress)

    def _number(self, number: int) -> int:
        """The new number of a job."""
        place = bisect_right(self._ranges, number, key=lambda each: each.first)
        return number + self._ranges[place - 1].add

    async def write(self, group: CopyGroup) -> None:
        number = self._number
        with self._errors(), self._transaction() as tables:
            for dead in (False, True):
                jobs = [
                    job._replace(number=number(job.number)) for job, is_dead in group.jobs if is_dead == dead
                ]
                tables.insert_jobs(jobs, int(dead))
            for _, parts in groupby(group.parts, key=attrgetter("number", "run")):
                tables.save_parts([part._replace(number=number(part.number)) for part in parts])
            tables.insert_records(
                [
                    record._replace(
                        number=number(record.number),
                        letter=record.letter and record.letter._replace(number=number(record.number)),
                    )
                    for record in group.results
                ]
            )
            self._connection.execute("UPDATE copying SET progress = ?", (group.progress.text(),))
        self._written += sum(size_of(job.workload) for job, _ in group.jobs)
        self._written += sum(size_of(record.body) for record in group.results)
        self._written += sum(len(part.body) for part in group.parts)
        if self._written > _LOG:
            self._written = 0
            with self._errors():
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    async def settings(self) -> Sequence[Setting]:
        return ()

    async def finish(
        self, paused: Sequence[bytes], settings: Sequence[Setting], progress: CopyProgress
    ) -> None:
        with self._errors():
            with self._transaction() as tables:
                for function in paused:
                    tables.pause(Paused(function, True))
                tables.apply(settings)
                self._connection.execute("DROP TABLE copying")
            self._publish()

    def _publish(self) -> None:
        connection = self._connection
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        connection.execute("PRAGMA journal_mode = DELETE").fetchone()  # so that it is one file
        connection.close()
        publish(self._partial, self._path)
        _remove(self._partial)

    @contextmanager
    def _transaction(self) -> Generator[Tables]:
        tables, connection = self._tables, self._connection
        connection.execute("BEGIN IMMEDIATE")
        yield tables
        tables.metadata.groups += 1
        tables.metadata.update(connection)
        connection.execute("COMMIT")
        tables.committed()

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except (DamagedRow, DamagedMetadata):
            raise damaged(self._partial, "it is not what was written") from None
        except (sqlite3.Error, OSError) as error:
            raise failed(self._partial, error) from error


def _name_of(path: Path) -> bytes | None:
    """The name of the store in a file, or None if it is none, or not whole."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            return Metadata.read(connection).name
    except (sqlite3.Error, DamagedMetadata):
        return None


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
