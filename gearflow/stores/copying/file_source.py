"""Reads all entries of a file whose server is stopped."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

from gearflow.broker.storage import JobPart, JobRecord, Renumbered, Setting, StoredJob, size_of
from gearflow.errors import StoreError
from gearflow.stores.copying.entries import GROUP, GROUP_BYTES, CopyGroup, CopyPhase, CopyProgress
from gearflow.stores.sqlite.errors import failed
from gearflow.stores.sqlite.files import FileLock, lock_database
from gearflow.stores.sqlite.integrity import check_file, check_records
from gearflow.stores.sqlite.moved import MovedFile, read_mark, remove_mark, write_mark
from gearflow.stores.sqlite.opening import check_head, connect, make_ready, read_metadata
from gearflow.stores.sqlite.packs import RESULTS, Pack, is_pack
from gearflow.stores.sqlite.reader import Reader
from gearflow.stores.sqlite.recovery import check_not_planned
from gearflow.stores.sqlite.rows import JOB_DEAD, JOB_HEAD, RECORD_COLUMNS, RECORD_DEAD, DamagedRow
from gearflow.stores.sqlite.schema import Metadata, read_renumbered
from gearflow.stores.sqlite.settings import SETTING_COLUMNS, named, row_setting
from gearflow.stores.sqlite.streams import STREAM_COLUMNS, row_parts
from gearflow.stores.sqlite.tuning import Tuning

_DAMAGE = (DamagedRow, sqlite3.Error, OSError)


class FileSource:
    """A ``CopySource`` that is a file."""

    name: bytes
    renumbered: Sequence[Renumbered]

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        self._stack = ExitStack()

    async def open(self) -> None:
        path = self._path
        if not path.is_file():
            raise StoreError(f"there is no file {path} to copy")
        try:
            lock = FileLock(path)
            self._stack.callback(lock.release, orderly=False)
            check_not_planned(path)
            file = self._stack.enter_context(path.open("r+b"))
            lock_database(path, file.fileno())
            check_head(path, file.fileno(), lock)
            connection = self._connection = connect(path, "batch")
            self._stack.callback(connection.close)
            make_ready(path, connection)
            read_metadata(path, connection, lock, Tuning())
            self._metadata = Metadata.read(connection)
            check_file(path, connection, file.fileno(), Tuning())
            check_records(path, connection, self._metadata)
            self._reader = Reader(connection)
            self.name = self._metadata.name
            self.renumbered = read_renumbered(connection)
        except DamagedRow:
            raise StoreError(f"{path}: the table renumbered is not what was written") from None
        except (sqlite3.Error, OSError) as error:
            raise failed(path, error) from error

    async def close(self) -> None:
        self._stack.close()

    # --------------------------------------------------------------------------------------- its mark

    async def begin(self, target: str, key: str) -> tuple[str, bool]:
        moved = read_mark(self._path)
        if moved is not None and moved.key == key:
            self._mark = moved
            return moved.copy, False
        if moved is not None:
            what = "were copied" if moved.done else "are being copied"
            raise StoreError(
                f"the jobs in {self._path} {what} to {moved.to}, where they would run as well; to copy them "
                f"elsewhere still, remove {self._path.name}-moved"
            )
        self._write_mark(MovedFile(str(uuid4()), target, key))
        return self._mark.copy, True

    async def give_up(self) -> None:
        try:
            remove_mark(self._path)
        except OSError as error:
            raise failed(self._path, error) from error

    async def end(self) -> None:
        self._write_mark(self._mark._replace(done=True))

    def _write_mark(self, moved: MovedFile) -> None:
        self._mark = moved
        try:
            write_mark(self._path, moved)
        except OSError as error:
            raise failed(self._path, error) from error

    # ------------------------------------------------------------------------------------ its contents

    async def ranges(self) -> Sequence[tuple[int, int]]:
        (last,) = self._connection.execute("SELECT max(number) FROM jobs").fetchone()
        return [(1, max(self._metadata.reserved, (last or 0) + 1, 2) - 1)]

    async def total(self) -> int | None:
        return self._metadata.jobs + self._metadata.records

    async def paused(self) -> Sequence[bytes]:
        try:
            return self._reader.paused()
        except _DAMAGE as error:
            raise StoreError(f"{self._path}: which functions are paused cannot be read ({error})") from None

    async def settings(self) -> tuple[Sequence[Setting], Sequence[str]]:
        settings: list[Setting] = []
        faults: list[str] = []
        try:
            rows = self._connection.execute(f"SELECT {SETTING_COLUMNS} FROM settings ORDER BY id").fetchall()
        except _DAMAGE as error:
            raise StoreError(f"{self._path}: the settings cannot be read ({error})") from None
        for row in rows:
            try:
                settings.append(row_setting(row))
            except DamagedRow as error:
                faults.append(self._damage(f"the {named(row)}", error))
        missing = self._metadata.settings - len(rows)
        if missing > 0:
            faults.append(f"{missing} schedules, limits or policies are missing in {self._path}")
        return settings, faults

    async def groups(self, progress: CopyProgress) -> AsyncIterator[CopyGroup]:
        if progress.phase == CopyPhase.JOBS:
            for group in self._jobs(progress):
                progress = group.progress
                yield group
            missing = self._metadata.jobs - self._seen_jobs()
            faults = [f"{missing} jobs are missing in {self._path}"] if missing > 0 else []
            damaged = progress.damaged + max(0, missing)
            progress = progress._replace(phase=CopyPhase.PARTS, after=0, position=-1, damaged=damaged)
            yield CopyGroup(progress, damaged=faults)
        if progress.phase == CopyPhase.PARTS:
            for group in self._parts(progress):
                progress = group.progress
                yield group
            progress = progress._replace(phase=CopyPhase.RESULTS, after=0, position=-1)
            yield CopyGroup(progress)
        if progress.phase == CopyPhase.RESULTS:
            for group in self._results(progress):
                yield group

    def _seen_jobs(self) -> int:
        count: int = self._connection.execute("SELECT count(*) FROM jobs").fetchone()[0]
        return count

    def _keys(self, query: str, after: int) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, (after, GROUP)).fetchall()
        except sqlite3.Error as error:
            raise failed(self._path, error) from error

    def _damage(self, what: str, error: Exception) -> str:
        why = "is not what was written" if isinstance(error, DamagedRow) else f"cannot be read ({error})"
        return f"{what} {why}"

    def _jobs(self, progress: CopyProgress) -> Iterator[CopyGroup]:
        query = f"SELECT {JOB_HEAD}, workload FROM jobs WHERE number = ?"
        while rows := self._keys(
            "SELECT number FROM jobs WHERE number > ? ORDER BY number LIMIT ?", progress.after
        ):
            jobs: list[tuple[StoredJob, bool]] = []
            faults: list[str] = []
            size = 0
            for (number,) in rows:
                progress = progress._replace(after=number)
                try:
                    (row,) = self._connection.execute(query, (number,)).fetchall()
                    job = self._reader.whole_job(row)
                except (*_DAMAGE, ValueError) as error:
                    faults.append(self._damage(f"job {number}", error))
                    progress = progress._replace(damaged=progress.damaged + 1)
                    continue
                dead = row[JOB_DEAD] != 0
                jobs.append((job, dead))
                progress = progress._replace(jobs=progress.jobs + (not dead), dead=progress.dead + dead)
                size += size_of(job.workload)
                if size >= GROUP_BYTES:
                    break
            yield CopyGroup(progress, jobs=jobs, damaged=faults)

    def _parts(self, progress: CopyProgress) -> Iterator[CopyGroup]:
        """The rows of a life are in the order of their last positions."""
        numbers = "SELECT DISTINCT number FROM streams WHERE number > ? ORDER BY number LIMIT ?"
        rows_of = (
            f"SELECT {STREAM_COLUMNS} FROM streams WHERE number = ?1 AND last > ?2 AND "
            "life = (SELECT max(life) FROM streams WHERE number = ?1) ORDER BY last, id LIMIT 64"
        )
        progress = progress._replace(after=progress.after - (progress.position >= 0))
        while found := self._keys(numbers, progress.after):
            for (number,) in found:
                position = progress.position
                is_needed = self._is_needed(number)
                while True:
                    try:
                        rows = self._connection.execute(rows_of, (number, position)).fetchall()
                    except _DAMAGE as error:
                        rows = []
                        progress = progress._replace(damaged=progress.damaged + 1)
                        fault = self._damage(f"the stream of job {number}", error)
                        yield CopyGroup(progress, damaged=[fault])
                    if not rows or not is_needed:
                        break
                    parts: list[JobPart] = []
                    faults: list[str] = []
                    for row in rows:
                        position = row[3]
                        run = row[6]
                        try:
                            kept = row_parts(row)
                        except DamagedRow as error:
                            faults.append(self._damage(f"a part of the stream of job {number}", error))
                            continue
                        parts += [JobPart(number, place, body, run) for place, body in kept]
                        if not kept and run:
                            parts.append(JobPart(number, 0, b"", run))
                    progress = progress._replace(
                        after=number,
                        position=position,
                        parts=progress.parts + sum(part.position > 0 for part in parts),
                        damaged=progress.damaged + len(faults),
                    )
                    yield CopyGroup(progress, parts=parts, damaged=faults)
                progress = progress._replace(after=number, position=-1)

    def _is_needed(self, number: int) -> bool:
        query = (
            "SELECT EXISTS (SELECT 1 FROM jobs WHERE number = ?1) OR "
            "EXISTS (SELECT 1 FROM records WHERE number = ?1)"
        )
        return bool(self._connection.execute(query, (number,)).fetchone()[0])

    def _results(self, progress: CopyProgress) -> Iterator[CopyGroup]:
        places = f"SELECT place, {RESULTS}, number FROM records WHERE place > ? ORDER BY place LIMIT ?"
        query = f"SELECT {RECORD_COLUMNS} FROM records WHERE place = ?"
        while rows := self._keys(places, progress.after):
            results: dict[int, JobRecord] = {}
            faults: list[str] = []
            size = 0
            for place, count, number in rows:
                progress = progress._replace(after=place)
                try:
                    (row,) = self._connection.execute(query, (place,)).fetchall()
                    records = list(Pack(row)) if is_pack(row) else [self._reader.whole_record(row)]
                except (*_DAMAGE, ValueError) as error:
                    what = f"{count} results in one row" if number is None else f"the result of job {number}"
                    faults.append(self._damage(what, error))
                    progress = progress._replace(damaged=progress.damaged + count)
                    continue
                for record in records:
                    letter = self._letter(record.number) if not is_pack(row) and row[RECORD_DEAD] else None
                    results.pop(record.number, None)  # the last one counts
                    results[record.number] = record._replace(letter=letter)
                    size += size_of(record.body)
                progress = progress._replace(results=progress.results + len(records))
                if size >= GROUP_BYTES or len(results) >= GROUP:
                    break
            yield CopyGroup(progress, results=list(results.values()), damaged=faults)

    def _letter(self, number: int) -> StoredJob | None:
        """A dead letter without its workload. None if it is damaged, which is known already."""
        try:
            held = self._reader.held(number)
        except _DAMAGE:
            return None
        return held[0]._replace(workload=size_of(held[0].workload)) if held is not None else None
