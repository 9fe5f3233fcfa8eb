"""Recovery: saves what can be read of a damaged file into a new file that replaces it.

``damaged`` reads the file.

**Replacing.** The new file is complete before anything happens to the damaged one. Then a plan is written
beside the file, with ``-swap`` at the end of its name. Until it is there, nothing has changed. From then on
no server opens the file until the plan has been carried out, which can be repeated after a crash.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import ExitStack, closing, suppress
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from gearflow.broker.storage import JobOutcome, JobRecord, Paused, Setting, StoredJob, size_of
from gearflow.errors import StoreError
from gearflow.stores.sqlite.damaged import DamagedTables, LostRows, is_sound, open_damaged, pages_of
from gearflow.stores.sqlite.errors import DiskFull, failed, hint
from gearflow.stores.sqlite.files import FileLock, lock_database, sync_names
from gearflow.stores.sqlite.leaves import Leaves
from gearflow.stores.sqlite.opening import connect, make_ready
from gearflow.stores.sqlite.rows import (
    Row,
)
from gearflow.stores.sqlite.schema import DamagedMetadata, Metadata, write_renumbered
from gearflow.stores.sqlite.settings import write_settings
from gearflow.stores.sqlite.tables import Tables


class Recovered(NamedTuple):
    """The result of a recovery. None means that it cannot be known."""

    kept_jobs: int  # with dead letters
    lost_jobs: int | None
    kept_records: int
    lost_records: int | None
    lost_groups: int  # of changes, at the end of a log that was cut: they are not among the lost
    same_name: bool  # handles that were given before are still good
    moved_to: Path  # where the damaged file is now
    same_paused: bool  # the functions that were paused still are
    doubtful_jobs: int = 0  # not among the kept: they may have ended before, and are dead letters now
    same_parts: bool = True  # no part of a stream is lost
    same_renumbered: bool = True  # handles of stores from which jobs were copied are still good
    damaged_settings: tuple[str, ...] = ()  # their kinds and names: they are lost
    lost_settings: int | None = 0  # how many, with these


def rescue_of(path: Path) -> Path:
    """The path of the new file until it replaces the damaged one."""
    return path.with_name(f"{path.name}-recovered")


def is_planned(path: Path) -> bool:
    """Whether a complete new file has yet to replace the damaged one."""
    return _plan_of(path).exists()


def check_not_planned(path: Path) -> None:
    """Raises StoreError if a recovery is not finished."""
    if is_planned(path):
        raise StoreError(f"{path}: its rescue was cut short before it was in its place; {hint(path)}")


def plan(path: Path, store: bytes, recovered: Recovered) -> None:
    """Write the plan. From here on the new file replaces the damaged one, also after a crash.

    Args:
        path: The damaged file.
        store: The name of the store in the new file.
        recovered: The result of the recovery.

    Raises:
        OSError: The plan could not be written.
    """
    final = _plan_of(path)
    draft = final.with_name(f"{final.name}-draft")
    text = json.dumps({"store": store.decode(), **recovered._asdict(), "moved_to": recovered.moved_to.name})
    try:
        with draft.open("w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(final)
    finally:
        draft.unlink(missing_ok=True)
    _sync_names_beside(path)


def carry_out(path: Path, owner: FileLock) -> Recovered:
    """Carry out the steps of the plan that remain.

    Raises:
        StoreError: Another file has been put there meanwhile, or the plan is damaged.
        OSError: A step failed. The plan is still there.
    """
    store, recovered = _read(path)
    if rescue_of(path).exists():
        for suffix in ("", "-wal", "-shm"):
            _move_aside(path, recovered.moved_to, suffix)
        owner.expect_nothing(store)
        rescue_of(path).rename(path)
        _sync_names_beside(path)
    _plan_of(path).unlink()
    return recovered


def _read(path: Path) -> tuple[bytes, Recovered]:
    """Read the plan: the name of the store in the new file, and the result of the recovery."""
    try:
        planned: dict[str, Any] = json.loads(_plan_of(path).read_text(encoding="ascii"))
        store = planned.pop("store").encode()
        planned["damaged_settings"] = tuple(planned.get("damaged_settings", ()))
        return store, Recovered(moved_to=path.with_name(planned.pop("moved_to")), **planned)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StoreError(
            f"{_plan_of(path)} is damaged. If {path.name} is there, remove that plan and run this again; if "
            f"not, rename {rescue_of(path).name}, which is complete, to {path.name} first"
        ) from None


def _move_aside(path: Path, moved_to: Path, suffix: str) -> None:
    old, new = path.with_name(path.name + suffix), moved_to.with_name(moved_to.name + suffix)
    if not old.exists():
        return
    if new.exists():
        raise StoreError(
            f"{old} is there again, but it was moved to {new}: move it away to have the rescue in its place, "
            f"or remove {_plan_of(path)} to go on without the rescue"
        )
    old.rename(new)


def _plan_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-swap")


def _sync_names_beside(path: Path) -> None:
    with suppress(OSError):  # not every file system can
        sync_names(path.parent)


_GROUP: Final = 1000  # rows in a transaction
_KEEP: Final = 7 * 86400.0  # seconds to keep a dead letter whose result is lost
_DOUBT: Final = json.dumps(
    {"warnings": ["the file was damaged, and this job may have ended before"]}
).encode()


def recover(path: str | Path) -> Recovered:
    """Replace a file by a new one with everything that can be read of it. Finishes an interrupted recovery.

    Raises:
        StoreError: The file is in use or missing, or the new file does not fit on the disk. Then nothing has
            changed. Or the new file could not replace the damaged one. Then call this again.
    """
    path = Path(path).resolve()
    if not path.is_file() and not is_planned(path):
        raise StoreError(f"there is no file {path} to recover")
    owner = FileLock(path)
    try:
        if not is_planned(path):
            with path.open("r+b") as database:
                lock_database(path, database.fileno())
                _save(path, owner)
        return carry_out(path, owner)
    except (sqlite3.Error, OSError, DiskFull) as error:
        fault = error if isinstance(error, DiskFull) else failed(path, error)
        if isinstance(fault, DiskFull):
            text = "there is no room for the new file beside it; make room, and run this again"
            fault = DiskFull(f"{path}: {text}")
        raise fault from error
    finally:
        owner.release(orderly=False)  # nothing is expected of the new file


def _save(path: Path, owner: FileLock) -> None:
    """Write everything readable into a new file, and plan that it replaces the damaged one."""
    fresh, work = rescue_of(path), path.with_name(f"{path.name}-salvage")
    try:
        _remove(fresh)
        _remove(work)
        with closing(connect(fresh, "batch")) as target:
            make_ready(fresh, target)
            recovered, metadata = _salvage(path, owner, work, target)
            target.execute("PRAGMA synchronous = FULL")
            target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        fresh.chmod(0o600)  # as the store does, to protect the payloads
        plan(path, metadata.name, recovered)
    finally:
        if not is_planned(path):
            _remove(fresh)
        _remove(work)


def _salvage(
    path: Path, owner: FileLock, work: Path, target: sqlite3.Connection
) -> tuple[Recovered, Metadata]:
    with ExitStack() as stack:
        source = stack.enter_context(closing(open_damaged(path, work)))
        metadata = _metadata_of(source)
        known = metadata or Metadata(owner.name or os.urandom(4).hex().encode())
        tables = Tables(target, Metadata(known.name, known.reserved, copied=1))
        saved = _Saved(tables)
        leaves: Leaves | None = None
        if not is_sound(source):
            leaves = stack.enter_context(Leaves(pages_of(source, path, work)))
        damaged = DamagedTables(source, leaves)
        for job, dead in damaged.readable_jobs():
            saved.job(job, dead)
        ended = damaged.ended()
        if metadata is None:
            is_missing = damaged.failed
        else:
            is_missing = saved.found_jobs < metadata.jobs or len(ended) < metadata.records
        records = damaged.readable_records()
        for row in damaged.readable_streams():
            saved.stream_row(row)
        parts_are_missing = damaged.failed if metadata is None else saved.found_stream_rows < metadata.streams
        if is_missing or parts_are_missing:
            leaves = leaves or stack.enter_context(Leaves(pages_of(source, path, work)))
            lost = LostRows(source, leaves)
            for row in lost.readable_streams() if leaves.are_current else ():
                saved.stream_row(row)
            if is_missing:
                if leaves.are_current:
                    records = chain(records, lost.readable_records())
                _save_lost_jobs(lost, ended, saved, None if metadata is None else metadata.jobs)
        saved.end_of_jobs()
        for record, is_letter in records:
            saved.record(record, is_letter)
        saved.end_of_records(time.time())
        paused = damaged.readable_paused()
        for function in paused or ():
            tables.pause(Paused(function, True))
        renumbered = damaged.readable_renumbered()
        write_renumbered(target, renumbered or ())
        saved.settings(damaged.readable_settings())
        if damaged.failed if metadata is None else saved.found_settings < metadata.settings:
            leaves = leaves or stack.enter_context(Leaves(pages_of(source, path, work)))
            saved.settings(LostRows(source, leaves).readable_settings() if leaves.are_current else ())
        saved.end_of_settings()
    new = tables.metadata
    recovered = Recovered(
        kept_jobs=(kept := new.jobs - len(saved.doubtful)),
        lost_jobs=None if metadata is None else max(0, metadata.jobs - kept),
        kept_records=saved.found_records,
        lost_records=None if metadata is None else max(0, metadata.records - saved.found_records),
        lost_groups=0 if metadata is None else max(0, owner.expected - metadata.groups),
        same_name=metadata is not None or owner.name is not None,
        moved_to=_free_name(path),
        same_paused=paused is not None,
        doubtful_jobs=len(saved.doubtful),
        same_renumbered=renumbered is not None,
        damaged_settings=tuple(sorted(saved.damaged_settings)),
        lost_settings=None if metadata is None else max(0, metadata.settings - saved.found_settings),
        same_parts=not damaged.failed if metadata is None else saved.found_stream_rows >= metadata.streams,
    )
    return recovered, new


def _save_lost_jobs(lost: LostRows, ended: dict[int, bool], saved: _Saved, jobs: int | None) -> None:
    """Save jobs that were not found in their table. There should be so many, if that is known."""
    all_ended = lost.ended() | ended
    for lost.doubtful in (False, True):
        if jobs is not None and saved.found_jobs >= jobs:
            break
        for job, dead in lost.readable_jobs():
            if all_ended.get(job.number) is False or ended.get(job.number, dead) != dead:
                continue  # it has ended, or was another row when it became a dead letter
            is_sure = (lost.leaves.are_current and not lost.doubtful) or job.number in ended
            saved.job(job, dead, is_doubtful=not is_sure)
    lost.doubtful = False


class _Saved:
    """Writes saved rows into the new file."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._numbers: set[int] = set()  # of jobs that are to run
        self._letters: dict[int, StoredJob] = {}  # without their workloads
        self._recorded: set[int] = set()  # numbers of results
        self._jobs: tuple[list[StoredJob], list[StoredJob]] = [], []  # to be written: alive, dead
        self._records: list[JobRecord] = []  # to be written
        self._stream_rows: list[Row] = []  # to be written
        self._stream_ids: set[int] = set()
        self._bytes = 0  # of what is to be written
        self._settings: dict[tuple[str, bytes], Setting] = {}
        self.damaged_settings: set[str] = set()
        self.found_records = 0
        self.doubtful: set[int] = set()  # numbers of jobs that may have ended

    @property
    def found_jobs(self) -> int:
        """The number of jobs so far, with dead letters."""
        return len(self._numbers) + len(self._letters)

    @property
    def found_stream_rows(self) -> int:
        """The number of rows with parts of streams so far."""
        return len(self._stream_ids)

    def stream_row(self, row: Row) -> None:
        """Save a row with parts of a stream, before the results."""
        if row[0] not in self._stream_ids:
            self._stream_ids.add(row[0])
            self._stream_rows.append(row[1:])
            self._written(len(row[-1]))

    @property
    def found_settings(self) -> int:
        """The number of settings so far."""
        return len(self._settings)

    def settings(self, found: Iterable[Setting | str]) -> None:
        """Save settings. Of those that are damaged there are the names. The first of each name counts."""
        for setting in found:
            if isinstance(setting, str):
                self.damaged_settings.add(setting)
            else:
                self._settings.setdefault((setting.kind, setting.name), setting)

    def end_of_settings(self) -> None:
        """Write the settings. Damage is that of a row of which no whole one was found."""
        names = {f"{kind} {name.decode(errors='replace')}" for kind, name in self._settings}
        self.damaged_settings -= names
        tables = self._tables
        tables.connection.execute("BEGIN IMMEDIATE")
        write_settings(tables.connection, tables.metadata, self._settings.values())
        tables.metadata.update(tables.connection)
        tables.connection.execute("COMMIT")

    def job(self, job: StoredJob, dead: bool, *, is_doubtful: bool = False) -> None:
        """Save a job. A doubtful one becomes a dead letter."""
        if job.number in self._numbers or job.number in self._letters:
            return
        size = size_of(job.workload)
        if is_doubtful:
            self.doubtful.add(job.number)
            dead = True
        if dead:
            self._letters[job.number] = job._replace(workload=size)
        else:
            self._numbers.add(job.number)
        self._jobs[dead].append(job)
        self._written(size)

    def end_of_jobs(self) -> None:
        self._flush()
        last = max((*self._numbers, *self._letters), default=0)
        self._tables.metadata.reserved = max(self._tables.metadata.reserved, last + 1)

    def record(self, record: JobRecord, is_letter: bool) -> None:
        if record.number in self._numbers or record.number in self._recorded:
            return  # a job that is to run has no result
        self._recorded.add(record.number)
        self.found_records += 1
        self._records.append(record._replace(letter=self._letters.get(record.number) if is_letter else None))
        self._written(size_of(record.body))

    def end_of_records(self, now: float) -> None:
        """Give each dead letter whose result is lost an empty one, so that it can be found."""
        for number, letter in self._letters.items():
            if number not in self._recorded:
                self._records.append(
                    JobRecord(
                        number=number,
                        function=letter.function,
                        unique=letter.unique,
                        outcome=JobOutcome.FAILED,
                        body=b"",
                        submitted=letter.submitted,
                        started=0.0,
                        ended=now,
                        attempt=letter.attempt,
                        deaths=letter.deaths,
                        worker=b"",
                        notes=_DOUBT if number in self.doubtful else b"",
                        expires=now + _KEEP,
                        letter=letter,
                    )
                )
                self._written(0)
        self._flush()

    def _written(self, size: int) -> None:
        self._bytes += size
        rows = len(self._jobs[0]) + len(self._jobs[1]) + len(self._stream_rows) + len(self._records)
        if self._bytes > 64 << 20 or rows >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        tables = self._tables
        tables.connection.execute("BEGIN IMMEDIATE")
        for dead, jobs in enumerate(self._jobs):
            tables.insert_jobs(jobs, dead)
            jobs.clear()
        tables.save_stream_rows(self._stream_rows)
        self._stream_rows.clear()
        tables.insert_records(self._records)
        self._records.clear()
        self._bytes = 0
        tables.metadata.update(tables.connection)
        tables.connection.execute("COMMIT")


def _metadata_of(source: sqlite3.Connection) -> Metadata | None:
    try:
        return Metadata.read(source)
    except (sqlite3.Error, DamagedMetadata):
        return None


def _free_name(path: Path) -> Path:
    name = f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    number = 0
    while (free := path.with_name(f"{name}-{number}" if number else name)).exists():
        number += 1
    return free


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
