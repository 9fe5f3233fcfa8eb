"""Jobs and results as rows of PostgreSQL and back.

The *key* of a job is there if its unique means something: then no other live job of any server has it. The
*token* of a result finds the results of a unique.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from typing import Final, cast

from gearflow.broker.parser import Body
from gearflow.broker.storage import JobOutcome, JobRecord, StoredJob
from gearflow.protocol.uniques import is_fresh
from gearflow.stores.postgres.arrays import read_int, read_real

SHORT: Final = 1024
"""Bytes up to which a workload is read with its job."""

JOB: Final = "number, function, uniq, priority, submitted, due, reducer, options, attempt, deaths"
SIZE: Final = "coalesce(size, octet_length({0}))::bigint"
RECORD: Final = (
    "number, function, uniq, outcome, submitted, started, ended, attempt, deaths, worker, notes, expires"
)

_JOB_NUMBERS: Final = Struct("!qhddii").unpack
_OUTCOMES: Final = {outcome.value: outcome for outcome in JobOutcome}


def key_of(function: bytes, unique: bytes, workload: Body | int) -> bytes | None:
    """The key of a job, or None if its unique means nothing. 16 bytes."""
    if not unique or is_fresh(unique):
        return None
    if unique == b"-":
        if isinstance(workload, int) or not len(workload):
            return None
        unique = b"-\0" + blake2b(workload, digest_size=32).digest()  # as the broker does
    return _digest(function, unique, 16)


def token_of(function: bytes, unique: bytes) -> int:
    """The token of a unique."""
    return int.from_bytes(_digest(function, unique, 8), "big", signed=True)


def _digest(function: bytes, unique: bytes, size: int) -> bytes:
    digest = _begun(function, size).copy()  # in half the time of a new one
    digest.update(unique)
    return digest.digest()


@lru_cache(256)
def _begun(function: bytes, size: int) -> blake2b:
    return blake2b(function + b"\0", digest_size=size)


def job_of(row: tuple[bytes | None, ...], workload: Body | int) -> StoredJob:
    """The job of a row that begins with ``JOB``. An adopter has millions, so all numbers are read at once."""
    number, function, unique, priority, submitted, due, reducer, options, attempt, deaths = row[:10]
    numbers = cast("tuple[bytes, ...]", (number, priority, submitted, due, attempt, deaths))  # none is NULL
    number_, priority_, submitted_, due_, attempt_, deaths_ = _JOB_NUMBERS(b"".join(numbers))
    return StoredJob(
        number_,
        function or b"",
        unique or b"",
        priority_,
        submitted_,
        due_,
        reducer,
        options or b"",
        attempt_,
        deaths_,
        workload,
    )


def record_of(row: tuple[bytes | None, ...], body: Body | int) -> JobRecord:
    """The result of a row that begins with ``RECORD``."""
    number, function, unique, outcome, submitted, started, ended, attempt, deaths, worker, notes, expires = (
        row[:12]
    )
    return JobRecord(
        read_int(number),
        function or b"",
        unique or b"",
        _OUTCOMES[read_int(outcome)],
        body,
        read_real(submitted),
        read_real(started),
        read_real(ended),
        read_int(attempt),
        read_int(deaths),
        worker or b"",
        notes or b"",
        read_real(expires),
    )
