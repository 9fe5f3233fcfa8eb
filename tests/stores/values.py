"""All stores, and jobs and ends of jobs with everything filled in.

So a test says only what matters to it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Final, TypeAlias

from gearflow.broker.storage import Contents, JobOutcome, JobRecord, Store, StoredJob
from gearflow.stores import MemoryStore, SqliteStore
from gearflow.stores.sqlite.tuning import Tuning

Make: TypeAlias = Callable[[Path, int | None], Store]

STORES: Final[dict[str, Make]] = {
    "memory": lambda _, keep_bytes: MemoryStore(keep_bytes=keep_bytes),
    "sqlite": lambda directory, keep_bytes: SqliteStore(directory / "jobs.db", keep_bytes=keep_bytes),
    "sqlite in small parts": lambda directory, keep_bytes: SqliteStore(
        directory / "jobs.db", keep_bytes=keep_bytes, tuning=Tuning(part=4096)
    ),
    "sqlite with packs": lambda directory, keep_bytes: SqliteStore(
        directory / "jobs.db", keep_bytes=keep_bytes, tuning=Tuning(pack=1, loose=0)
    ),
}


def a_job(number: int, workload: bytes | memoryview | int = b"payload", **fields: Any) -> StoredJob:
    given = StoredJob(
        number=number,
        function=b"resize",
        unique=b"key-%d" % number,
        priority=1,
        submitted=1000.25 + number,
        due=0.0,
        reducer=None,
        options=b"",
        attempt=0,
        deaths=0,
        workload=workload,
    )
    return given._replace(**fields)


def an_end(number: int, body: bytes | memoryview = b"result", **fields: Any) -> JobRecord:
    given = JobRecord(
        number=number,
        function=b"resize",
        unique=b"key-%d" % number,
        outcome=JobOutcome.COMPLETED,
        body=body,
        submitted=1000.25 + number,
        started=2000.5,
        ended=3000.125,
        attempt=1,
        deaths=0,
        worker=b"worker-1",
        notes=b"",
        expires=5000.0,
    )
    return given._replace(**fields)


def a_dead_letter(number: int, workload: bytes | memoryview | int = b"payload", **fields: Any) -> JobRecord:
    function = fields.get("function", b"resize")
    letter = a_job(number, workload, function=function, attempt=3, deaths=1)
    return an_end(number, b"what went wrong", outcome=JobOutcome.RAISED, letter=letter, **fields)


def whole_result(store: Store, number: int) -> JobRecord | None:
    """What became of a job, with its whole body."""
    return read(store.fetch_result(number))


def read(steps: Generator[None, None, JobRecord | None]) -> JobRecord | None:
    """Take all steps. The result has its whole body."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: JobRecord | None = end.value
            break
    if found is None:
        return None
    assert not isinstance(found.body, int)
    return found._replace(body=bytes(found.body))


def tamper(path: Path, statement: str) -> None:
    """Change a file that nobody has, behind the store's back."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(statement)
    connection.close()


def jobs_of(contents: Contents) -> list[StoredJob]:
    return list(contents.jobs)


def with_workload(store: Store, job: StoredJob) -> StoredJob:
    """As ``store`` has it, whole; its body as bytes, so that it can be compared."""
    found = store.job(job.number)
    assert found is not None
    assert not isinstance(found.workload, int)
    return found._replace(workload=bytes(found.workload))
