"""Jobs as the store has them, and back; and the envelope that a worker gets with a workload."""

from __future__ import annotations

import json
from typing import Any, Final

from gearflow.broker.job import EndedRun, JobDetails, QueuedJob
from gearflow.broker.parser import Body, integer
from gearflow.broker.session import NEVER_NAMED, Session
from gearflow.broker.storage import Answer, JobOutcome, JobRecord, Pending, Rescheduled, StoredJob
from gearflow.errors import StoreError
from gearflow.protocol.constants import STREAM_KEEP

RUNS: Final = 16
"""Ended runs of a job that are known. The first one and the newest are kept."""

_REASON: Final = 500  # characters of the reason of a run that are kept


def stored_job(job: QueuedJob, clock_offset: float) -> StoredJob:
    """The job as it is to be kept."""
    details = job.details
    due, reducer, options, attempt, deaths = 0.0, None, b"", 0, 0
    if details is not None:
        due, reducer, attempt, deaths = details.due, details.reducer, details.attempt, details.deaths
        options = _options(details, details.previous, details.runs)
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


def ended_run(job: QueuedJob, reason: str, now: float, clock_offset: float) -> EndedRun:
    """The run of a job that ends now, because the job is to run again."""
    attempt = (job.details.attempt if job.details is not None else 0) + 1
    worker = name_of(job.worker).decode(errors="replace") if job.worker is not None else ""
    return EndedRun(attempt, job.started + clock_offset, now, worker, reason[:_REASON])


def with_run(details: JobDetails, run: EndedRun) -> tuple[EndedRun, ...]:
    """The ended runs of a job after one more."""
    runs = (*details.runs, run)
    return runs if len(runs) <= RUNS else (runs[0], *runs[2:])


def rescheduled(job: QueuedJob, details: JobDetails, due: float, attempt: int, run: EndedRun) -> Rescheduled:
    """The job is to run again, and the next run is to know the last progress."""
    options = _options(details, _last_progress(details), with_run(details, run))
    return Rescheduled(job.number, due, attempt, details.deaths, options)


def details_of(stored: StoredJob) -> JobDetails | None:
    """What the kept job has beyond what all jobs have."""
    if not (stored.due or stored.options or stored.attempt or stored.deaths or stored.reducer is not None):
        return None
    details = JobDetails()
    details.due = stored.due
    details.reducer = stored.reducer
    details.attempt = stored.attempt
    details.deaths = stored.deaths
    if stored.options:
        options: dict[str, Any] = json.loads(stored.options)
        details.expires = options.get("expires", 0.0)
        details.keep = options.get("keep")
        details.stream_keep = options.get("stream_keep", STREAM_KEEP)
        details.timeout = options.get("timeout")
        details.retries = options.get("retries")
        if "scheduled_at" in options:
            time, zone = options["scheduled_at"]
            details.scheduled_at = time, zone
        details.keys = options.get("keys")
        details.group = options.get("group")
        details.trace = options.get("trace")
        if "previous" in options:
            done, total, message = options["previous"]
            details.previous = done, total, message
        details.runs = runs_in(options)
    return details


def afresh(stored: StoredJob) -> StoredJob:
    """The job as if it had just been submitted, but that it may start whenever it is."""
    stored = stored._replace(attempt=0, deaths=0, due=0.0)
    if not any(name in stored.options for name in (b'"expires"', b'"previous"', b'"runs"')):
        return stored
    options: dict[str, Any] = json.loads(stored.options)
    for name in ("expires", "previous", "runs"):
        options.pop(name, None)
    return stored._replace(options=json.dumps(options).encode() if options else b"")


def ended(
    job: QueuedJob,
    outcome: JobOutcome,
    body: Body,
    worker: Session | None,
    ended_at: float,
    clock_offset: float,
    expires: float,
    letter: StoredJob | None,
) -> JobRecord:
    """What became of a job."""
    details = job.details
    return JobRecord(
        job.number,
        job.function.name,
        job.unique,
        outcome,
        body,
        job.submitted + clock_offset,
        job.started + clock_offset if job.started else 0.0,
        ended_at + clock_offset,
        (details.attempt if details is not None else 0) + (1 if job.started else 0),
        details.deaths if details is not None else 0,
        name_of(worker) if worker is not None else b"",
        _notes(details) if details is not None else b"",
        expires,
        letter,
    )


def end_run(details: JobDetails) -> None:
    """A run has ended, and the job is to run again. Its progress is the previous one from now on."""
    details.previous = _last_progress(details)
    details.progress = None
    details.message = b""


def _last_progress(details: JobDetails) -> tuple[int, int, str | None] | None:
    """The progress of this run, else that of an earlier one."""
    if details.progress is None:
        return details.previous
    done, total = map(integer, details.progress)
    return done, total, details.message.decode(errors="replace") if details.message else None


def name_of(session: Session) -> bytes:
    """What a worker calls itself, or where it is."""
    return session.client_id if session.client_id is not NEVER_NAMED else session.address.encode()


def failure(kind: str, message: str) -> bytes:
    """An exception of the server's own, as gearflow's workers send theirs."""
    return json.dumps({"type": kind, "message": message}).encode()


def runs_in(fields: dict[str, Any]) -> tuple[EndedRun, ...]:
    """The ended runs of a job, from its options or notes as they are stored."""
    return tuple(EndedRun(*run) for run in fields.get("runs", ()))


def _options(
    details: JobDetails, previous: tuple[int, int, str | None] | None, runs: tuple[EndedRun, ...]
) -> bytes:
    options: dict[str, object] = {}
    if details.expires:
        options["expires"] = details.expires
    if details.keep is not None:
        options["keep"] = details.keep
    if details.stream_keep != STREAM_KEEP:
        options["stream_keep"] = details.stream_keep
    if details.timeout is not None:
        options["timeout"] = details.timeout
    if details.retries is not None:
        options["retries"] = details.retries
    if details.scheduled_at is not None:
        options["scheduled_at"] = details.scheduled_at
    if details.keys:
        options["keys"] = details.keys
    if details.group is not None:
        options["group"] = details.group
    if details.trace:
        options["trace"] = details.trace
    if previous is not None:
        options["previous"] = previous
    if runs:
        options["runs"] = runs
    return json.dumps(options).encode() if options else b""


def _notes(details: JobDetails) -> bytes:
    notes: dict[str, object] = {}
    if details.warnings:
        notes["warnings"] = [warning.decode(errors="replace") for warning in details.warnings]
    if details.progress is not None:
        notes["progress"] = [number.decode(errors="replace") for number in details.progress]
    if details.message:
        notes["message"] = details.message.decode(errors="replace")
    if details.log is not None and details.log.position:
        notes["parts"], notes["run"] = details.log.position, details.log.run
    if details.runs:
        notes["runs"] = details.runs
    return json.dumps(notes).encode() if notes else b""


def workload_of(job: QueuedJob, answer: Answer | Pending) -> Body:
    """The workload of a job that the store has, by its answer. Raises StoreError."""
    if isinstance(answer, StoreError):
        raise answer
    if not isinstance(answer, StoredJob) or isinstance(answer.workload, int):
        raise StoreError(f"the workload of job {job.number} is gone from the store")
    return answer.workload
