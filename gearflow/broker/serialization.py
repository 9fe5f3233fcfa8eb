"""Jobs as the store has them, and back; and what a worker is told of a job beside its workload."""

from __future__ import annotations

import json
from typing import Any

from gearflow.broker.job import NO_PROGRESS, Extras, QueuedJob
from gearflow.broker.parser import Body
from gearflow.broker.session import NEVER_NAMED, Session
from gearflow.broker.storage import JobRecord, Outcome, StoredJob


def stored_job(job: QueuedJob, clock_offset: float) -> StoredJob:
    """The job as it is to be kept."""
    extras = job.extras
    due, reducer, options, attempt, deaths = 0.0, None, b"", 0, 0
    if extras is not None:
        due, reducer, attempt, deaths = extras.due, extras.reducer, extras.attempt, extras.deaths
        options = _options(extras)
    return StoredJob(
        job.number,
        job.function.name,
        job.unique,
        job.priority,
        job.submitted + clock_offset,
        due,
        reducer,
        options,
        attempt,
        deaths,
        job.workload,
    )


def extras_of(stored: StoredJob) -> Extras | None:
    """What the kept job has beyond what all jobs have."""
    if not (stored.due or stored.options or stored.attempt or stored.deaths or stored.reducer is not None):
        return None
    extras = Extras()
    extras.due = stored.due
    extras.reducer = stored.reducer
    extras.attempt = stored.attempt
    extras.deaths = stored.deaths
    if stored.options:
        options: dict[str, Any] = json.loads(stored.options)
        extras.expires = options.get("expires", 0.0)
        extras.keep = options.get("keep")
        extras.timeout = options.get("timeout")
        extras.retries = options.get("retries")
    return extras


def without_expiry(stored: StoredJob) -> StoredJob:
    """The job, which may now start whenever it is."""
    if b'"expires"' not in stored.options:
        return stored
    options: dict[str, Any] = json.loads(stored.options)
    options.pop("expires", None)
    return stored._replace(options=json.dumps(options).encode() if options else b"")


def ended(
    job: QueuedJob,
    outcome: Outcome,
    body: Body,
    worker: Session | None,
    ended_at: float,
    clock_offset: float,
    expires: float,
    letter: StoredJob | None,
) -> JobRecord:
    """What became of a job."""
    extras = job.extras
    return JobRecord(
        job.number,
        job.function.name,
        job.unique,
        outcome,
        body,
        job.submitted + clock_offset,
        job.started + clock_offset if job.started else 0.0,
        ended_at + clock_offset,
        (extras.attempt if extras is not None else 0) + (1 if job.started else 0),
        extras.deaths if extras is not None else 0,
        name_of(worker) if worker is not None else b"",
        _notes(extras) if extras is not None else b"",
        expires,
        letter,
    )


def name_of(session: Session) -> bytes:
    """What a worker calls itself, or where it is."""
    return session.client_id if session.client_id is not NEVER_NAMED else session.address.encode()


def failure(kind: str, message: str) -> bytes:
    """An exception of the server's own, as gearflow's workers send theirs."""
    return json.dumps({"type": kind, "message": message}).encode()


def _options(extras: Extras) -> bytes:
    options: dict[str, object] = {}
    if extras.expires:
        options["expires"] = extras.expires
    if extras.keep is not None:
        options["keep"] = extras.keep
    if extras.timeout is not None:
        options["timeout"] = extras.timeout
    if extras.retries is not None:
        options["retries"] = extras.retries
    return json.dumps(options).encode() if options else b""


def _notes(extras: Extras) -> bytes:
    notes: dict[str, object] = {}
    if extras.warnings:
        notes["warnings"] = [warning.decode(errors="replace") for warning in extras.warnings]
    if extras.progress is not NO_PROGRESS:
        notes["progress"] = [number.decode(errors="replace") for number in extras.progress]
    return json.dumps(notes).encode() if notes else b""
