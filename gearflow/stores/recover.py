"""Save what can be read of a damaged file (see ``salvage``) into a new one that takes its place.

The new file is complete before the damaged one is moved away (see ``swap``); if anything fails until then,
all is as it was.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from gearflow.broker.store import Ended, Outcome, StoredJob
from gearflow.errors import StoreError
from gearflow.stores.account import Account, DamagedAccount
from gearflow.stores.faults import DiskFull, failed
from gearflow.stores.opening import connect, make_ready
from gearflow.stores.owner import Owner
from gearflow.stores.salvage import Salvage, open_damaged
from gearflow.stores.swap import Recovered, carry_out, is_planned, plan, rescue_of
from gearflow.stores.tables import Tables

_GROUP: Final = 1000  # rows in a transaction
_KEEP: Final = 7 * 86400.0  # seconds for which a dead letter is kept whose result is lost


def recover(path: str | Path) -> Recovered:
    """Replace a file by one with all that can be read of it. No server may have it.

    If that was cut short before, it is brought to its end.

    Raises:
        StoreError: It is in use, or not there, or there is no room for the new one; it is as it was. Or the
            new one is complete, and could not take its place; that is to be tried again.
    """
    path = Path(path).resolve()
    if not path.is_file() and not is_planned(path):
        raise StoreError(f"there is no file {path} to recover")
    owner = Owner(path)
    try:
        if not is_planned(path):
            _save(path, owner)
        return carry_out(path, owner)
    except (sqlite3.Error, OSError, DiskFull) as error:
        fault = error if isinstance(error, DiskFull) else failed(path, error)
        if isinstance(fault, DiskFull):
            text = "there is no room for the new file beside it; make room, and run this again"
            fault = DiskFull(f"{path}: {text}")
        raise fault from error
    finally:
        owner.release(orderly=False)  # of what is in its place now, nothing more is expected


def _save(path: Path, owner: Owner) -> None:
    """Write what can be read into a new file, and plan that it takes the place of this one."""
    fresh, work = rescue_of(path), path.with_name(f"{path.name}-salvage")
    try:
        _remove(fresh)
        _remove(work)
        with closing(connect(fresh, "batch")) as target:
            make_ready(fresh, target)
            recovered, account = _salvage(path, owner, work, target)
            target.execute("PRAGMA synchronous = FULL")
            target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        fresh.chmod(0o600)  # as the store's own: payloads are nobody else's
        plan(path, account.name, recovered)
    finally:
        if not is_planned(path):
            _remove(fresh)
        _remove(work)


def _salvage(path: Path, owner: Owner, work: Path, target: sqlite3.Connection) -> tuple[Recovered, Account]:
    with closing(open_damaged(path, work)) as source:
        account = _account_of(source)
        known = account or Account(owner.name or os.urandom(4).hex().encode())
        tables = Tables(target, Account(known.name, known.reserved, copied=1))
        saved = _Saved(tables)
        reader = Salvage(source)
        for job, dead in reader.jobs():
            saved.job(job, dead)
        saved.end_of_jobs()
        for record, is_letter in reader.records():
            saved.record(record, is_letter)
        saved.end_of_records(time.time())
        paused = reader.paused()
        tables.write_paused(paused or ())
    new = tables.account
    recovered = Recovered(
        kept_jobs=new.jobs,
        lost_jobs=None if account is None else max(0, account.jobs - new.jobs),
        kept_records=saved.found_records,
        lost_records=None if account is None else max(0, account.records - saved.found_records),
        lost_groups=0 if account is None else max(0, owner.expected - account.groups),
        same_name=account is not None or owner.name is not None,
        moved_to=_free_name(path),
        same_paused=paused is not None,
    )
    return recovered, new


class _Saved:
    """Writes what was read into the new file."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._numbers: set[int] = set()  # of jobs that are to run
        self._letters: dict[int, StoredJob] = {}  # without their workloads
        self._recorded: set[int] = set()  # numbers of results
        self._jobs: tuple[list[StoredJob], list[StoredJob]] = [], []  # to be written: alive, dead
        self._records: list[Ended] = []  # to be written
        self._bytes = 0  # of what is to be written
        self.found_records = 0

    def job(self, job: StoredJob, dead: bool) -> None:
        if job.number in self._numbers or job.number in self._letters:
            return
        size = job.workload if isinstance(job.workload, int) else len(job.workload)
        if dead:
            self._letters[job.number] = job._replace(workload=size)
        else:
            self._numbers.add(job.number)
        self._jobs[dead].append(job)
        self._written(size)

    def end_of_jobs(self) -> None:
        self._flush()
        last = max((*self._numbers, *self._letters), default=0)
        self._tables.account.reserved = max(self._tables.account.reserved, last + 1)

    def record(self, record: Ended, is_letter: bool) -> None:
        if record.number in self._numbers or record.number in self._recorded:
            return  # a job that is to run has no end
        self._recorded.add(record.number)
        self.found_records += 1
        self._records.append(record._replace(letter=self._letters.get(record.number) if is_letter else None))
        self._written(len(record.body))

    def end_of_records(self, now: float) -> None:
        """Dead letters whose ends are lost get one that says nothing, so that they can be found."""
        for number, letter in self._letters.items():
            if number not in self._recorded:
                self._records.append(
                    Ended(
                        number=number,
                        function=letter.function,
                        unique=letter.unique,
                        outcome=Outcome.FAILED,
                        body=b"",
                        submitted=letter.submitted,
                        started=0.0,
                        ended=now,
                        attempt=letter.attempt,
                        deaths=letter.deaths,
                        worker=b"",
                        notes=b"",
                        expires=now + _KEEP,
                        letter=letter,
                    )
                )
                self._written(0)
        self._flush()

    def _written(self, size: int) -> None:
        self._bytes += size
        if self._bytes > 64 << 20 or len(self._jobs[0]) + len(self._jobs[1]) + len(self._records) >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        tables = self._tables
        tables.connection.execute("BEGIN IMMEDIATE")
        for dead, jobs in enumerate(self._jobs):
            tables.insert_jobs(jobs, dead)
            jobs.clear()
        tables.insert_records(self._records)
        self._records.clear()
        self._bytes = 0
        tables.account.update(tables.connection)
        tables.connection.execute("COMMIT")


def _account_of(source: sqlite3.Connection) -> Account | None:
    try:
        return Account.read(source)
    except (sqlite3.Error, DamagedAccount):
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
